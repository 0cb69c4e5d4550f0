//! The changes to a job's life. Each runs inside the writer's transaction, looks at what is stored before it changes
//! anything, and returns the events that it wrote.

use super::rows::{integer, parsed, plain, to_json};
use super::types::{
    Assigned, AttemptOutcome, CancelOutcome, Claim, Ending, Finalised, NewArtifact, NewJob,
    Recovered, Requeued, StoredEvent, Submitted, artifact_url,
};
use super::{Identity, StoreError};
use atelier_protocol::http::{Artifact, EventKind, JobState};
use atelier_protocol::{DeviceId, ErrorBody, ErrorCode, JobId};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

/// How long an idempotency key is remembered, for SQLite's date arithmetic.
const KEY_AGE: &str = "-24 hours";

pub(super) fn submit(connection: &Connection, job: &NewJob) -> Result<Submitted, StoreError> {
    if let Some(idempotency) = &job.idempotency {
        connection
            .prepare_cached(
                "DELETE FROM idempotency
                 WHERE created_at <= strftime('%Y-%m-%dT%H:%M:%fZ', ?1, ?2)",
            )?
            .execute([&job.created_at, KEY_AGE])?;
        let before: Option<(String, String)> = connection
            .prepare_cached(
                "SELECT body_hash, job_id FROM idempotency WHERE owner = ?1 AND key = ?2",
            )?
            .query_row([&job.owner, &idempotency.key], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((body_hash, id)) = before {
            if body_hash != idempotency.body_hash {
                return Ok(Submitted::Conflict);
            }
            let id = id.parse().map_err(|_| StoreError::corrupt("an idempotency key's job"))?;
            return Ok(Submitted::Replayed { job: id });
        }
    }
    let queued: i64 = connection
        .prepare_cached("SELECT jobs FROM job_counts WHERE state = 'queued'")?
        .query_row([], |row| row.get(0))?;
    if queued >= i64::from(job.queue_limit) {
        return Ok(Submitted::QueueFull { queued: queued.cast_unsigned() });
    }
    connection
        .prepare_cached(
            "INSERT INTO jobs (id, owner, kind, state, request, warnings, created_at)
             VALUES (?1, ?2, ?3, 'queued', ?4, ?5, ?6)",
        )?
        .execute(params![
            job.id.to_string(),
            job.owner,
            job.kind,
            to_json(&job.request),
            to_json(&job.warnings),
            job.created_at,
        ])?;
    if let Some(idempotency) = &job.idempotency {
        connection
            .prepare_cached(
                "INSERT INTO idempotency (owner, key, body_hash, job_id, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                job.owner,
                idempotency.key,
                idempotency.body_hash,
                job.id.to_string(),
                job.created_at,
            ])?;
    }
    let mut log = EventLog::new(connection, &job.created_at);
    log.state(job.id, JobState::Queued, 0)?;
    for warning in &job.warnings {
        log.write(job.id, EventKind::Warning, json!(warning))?;
    }
    Ok(Submitted::New { events: log.events })
}

pub(super) fn claim(
    connection: &Connection,
    identity: Identity,
    job: JobId,
    now: &str,
    lease_until: &str,
) -> Result<Claim, StoreError> {
    let attempt: Option<u32> = connection
        .prepare_cached(
            "UPDATE jobs SET state = 'running', attempt = attempt + 1, node_id = ?2, boot_id = ?3,
                 lease_until = ?4, started_at = coalesce(started_at, ?5)
             WHERE id = ?1 AND state = 'queued'
             RETURNING attempt",
        )?
        .query_row(
            params![
                job.to_string(),
                identity.node_id.to_string(),
                identity.boot_id.to_string(),
                lease_until,
                now,
            ],
            |row| row.get(0),
        )
        .optional()?;
    let Some(attempt) = attempt else { return Ok(Claim::NotQueued) };
    connection
        .prepare_cached("INSERT INTO attempts (job_id, number, started_at) VALUES (?1, ?2, ?3)")?
        .execute(params![job.to_string(), attempt, now])?;
    let mut log = EventLog::new(connection, now);
    log.state(job, JobState::Running, attempt)?;
    Ok(Claim::Claimed { attempt, events: log.events })
}

pub(super) fn assign(
    connection: &Connection,
    job: JobId,
    attempt: u32,
    device: &DeviceId,
    worker_pid: Option<u32>,
) -> Result<Assigned, StoreError> {
    if running(connection, job, attempt)?.is_none() {
        return Ok(Assigned::Stale);
    }
    connection
        .prepare_cached(
            "UPDATE attempts SET device = ?3, worker_pid = ?4 WHERE job_id = ?1 AND number = ?2",
        )?
        .execute(params![job.to_string(), attempt, device.as_str(), worker_pid])?;
    Ok(Assigned::Yes)
}

pub(super) fn requeue(
    connection: &Connection,
    job: JobId,
    attempt: u32,
    outcome: AttemptOutcome,
    cause: Option<&ErrorBody>,
    now: &str,
) -> Result<Requeued, StoreError> {
    let Some(current) = running(connection, job, attempt)? else { return Ok(Requeued::Stale) };
    let mut log = EventLog::new(connection, now);
    close_attempt(connection, job, attempt, outcome, cause, now)?;
    Ok(match leave_running(&mut log, job, attempt, current.cancel_requested)? {
        Left::InLine => Requeued::Yes { events: log.events },
        Left::Cancelled => Requeued::Cancelled { events: log.events },
    })
}

pub(super) fn request_cancel(
    connection: &Connection,
    job: JobId,
    now: &str,
) -> Result<CancelOutcome, StoreError> {
    let found = connection
        .prepare_cached("SELECT state, attempt, cancel_requested FROM jobs WHERE id = ?1")?
        .query_and_then([job.to_string()], |row| {
            Ok::<_, StoreError>((
                parsed::<JobState>(row, "state")?,
                plain::<u32>(row, "attempt")?,
                plain::<bool>(row, "cancel_requested")?,
            ))
        })?
        .next()
        .transpose()?;
    let Some((state, attempt, requested)) = found else { return Ok(CancelOutcome::NotFound) };
    match state {
        JobState::Queued => {
            let mut log = EventLog::new(connection, now);
            cancel_now(&mut log, job, attempt, "the job was cancelled while it waited")?;
            Ok(CancelOutcome::Cancelled { events: log.events })
        }
        JobState::Running if requested => Ok(CancelOutcome::AlreadyRequested),
        JobState::Running => {
            connection
                .prepare_cached("UPDATE jobs SET cancel_requested = 1 WHERE id = ?1")?
                .execute([job.to_string()])?;
            Ok(CancelOutcome::Requested)
        }
        JobState::Succeeded | JobState::Failed | JobState::Cancelled => {
            Ok(CancelOutcome::Ended(state))
        }
    }
}

pub(super) fn finalise(
    connection: &Connection,
    job: JobId,
    attempt: u32,
    ending: &Ending,
    now: &str,
) -> Result<Finalised, StoreError> {
    if running(connection, job, attempt)?.is_none() {
        return Ok(Finalised::Stale);
    }
    let mut log = EventLog::new(connection, now);
    close_attempt(connection, job, attempt, ending.outcome, ending.cause.as_ref(), now)?;
    for artifact in &ending.artifacts {
        insert_artifact(connection, job, attempt, artifact, now)?;
        let data = json!(describe(artifact));
        log.write(job, EventKind::Artifact, data)?;
    }
    let state = JobState::from(ending.state);
    connection
        .prepare_cached(
            "UPDATE jobs SET state = ?2, ended_at = ?3, error = ?4, timings = ?5,
                 boot_id = NULL, lease_until = NULL
             WHERE id = ?1",
        )?
        .execute(params![
            job.to_string(),
            state.word(),
            now,
            ending.error.as_ref().map(to_json),
            to_json(&ending.timings),
        ])?;
    log.state(job, state, attempt)?;
    log.write(job, EventKind::End, Value::Null)?;
    Ok(Finalised::Done { events: log.events })
}

pub(super) fn recover(
    connection: &Connection,
    identity: Identity,
    now: &str,
) -> Result<Recovered, StoreError> {
    let found = connection
        .prepare_cached(
            "SELECT id, attempt, cancel_requested FROM jobs
             WHERE state = 'running' AND boot_id <> ?1 ORDER BY queue_seq",
        )?
        .query_and_then([identity.boot_id.to_string()], |row| {
            Ok((
                parsed::<JobId>(row, "id")?,
                plain::<u32>(row, "attempt")?,
                plain::<bool>(row, "cancel_requested")?,
            ))
        })?
        .collect::<Result<Vec<_>, StoreError>>()?;
    let cause =
        ErrorBody::new(ErrorCode::NodeStopping, "the node ended while this attempt was running");
    let mut log = EventLog::new(connection, now);
    let mut recovered = Recovered::default();
    for (job, attempt, cancel_requested) in found {
        close_attempt(connection, job, attempt, AttemptOutcome::Lost, Some(&cause), now)?;
        match leave_running(&mut log, job, attempt, cancel_requested)? {
            Left::InLine => recovered.requeued.push(job),
            Left::Cancelled => recovered.cancelled.push(job),
        }
    }
    recovered.events = log.events;
    Ok(recovered)
}

/// The guard of everything that an attempt does.
fn running(
    connection: &Connection,
    job: JobId,
    attempt: u32,
) -> Result<Option<Running>, StoreError> {
    Ok(connection
        .prepare_cached(
            "SELECT cancel_requested FROM jobs
             WHERE id = ?1 AND state = 'running' AND attempt = ?2",
        )?
        .query_row(params![job.to_string(), attempt], |row| {
            Ok(Running { cancel_requested: row.get(0)? })
        })
        .optional()?)
}

struct Running {
    cancel_requested: bool,
}

fn close_attempt(
    connection: &Connection,
    job: JobId,
    attempt: u32,
    outcome: AttemptOutcome,
    cause: Option<&ErrorBody>,
    now: &str,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE attempts SET ended_at = ?3, outcome = ?4, cause = ?5
             WHERE job_id = ?1 AND number = ?2",
        )?
        .execute(params![job.to_string(), attempt, now, outcome.word(), cause.map(to_json)])?;
    Ok(())
}

enum Left {
    InLine,
    Cancelled,
}

/// Back to its old place in line, or to its end if that was asked for: nobody would claim it to cancel it.
fn leave_running(
    log: &mut EventLog<'_>,
    job: JobId,
    attempt: u32,
    cancel_requested: bool,
) -> Result<Left, StoreError> {
    if cancel_requested {
        cancel_now(log, job, attempt, "the job was cancelled")?;
        return Ok(Left::Cancelled);
    }
    log.connection
        .prepare_cached(
            "UPDATE jobs SET state = 'queued', boot_id = NULL, lease_until = NULL WHERE id = ?1",
        )?
        .execute([job.to_string()])?;
    log.state(job, JobState::Queued, attempt)?;
    Ok(Left::InLine)
}

fn cancel_now(
    log: &mut EventLog<'_>,
    job: JobId,
    attempt: u32,
    message: &str,
) -> Result<(), StoreError> {
    let error = ErrorBody::new(ErrorCode::ProcessingCancelled, message);
    log.connection
        .prepare_cached(
            "UPDATE jobs SET state = 'cancelled', cancel_requested = 1, ended_at = ?2, error = ?3,
                 boot_id = NULL, lease_until = NULL
             WHERE id = ?1",
        )?
        .execute(params![job.to_string(), log.at, to_json(&error)])?;
    log.state(job, JobState::Cancelled, attempt)?;
    log.write(job, EventKind::End, Value::Null)
}

fn insert_artifact(
    connection: &Connection,
    job: JobId,
    attempt: u32,
    artifact: &NewArtifact,
    now: &str,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO artifacts (id, job_id, attempt, idx, blake3, media_type, width, height,
                 bytes, seed, path, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            artifact.id.to_string(),
            job.to_string(),
            attempt,
            artifact.index,
            artifact.file.blake3,
            artifact.media_type,
            artifact.width,
            artifact.height,
            integer(artifact.file.bytes),
            artifact.seed.cast_signed(), // the same 64 bits: seeds may use all of them
            artifact.file.relative_path,
            now,
        ])?;
    Ok(())
}

fn describe(artifact: &NewArtifact) -> Artifact {
    Artifact {
        id: artifact.id,
        index: artifact.index,
        media_type: artifact.media_type.clone(),
        width: artifact.width,
        height: artifact.height,
        bytes: artifact.file.bytes,
        blake3: artifact.file.blake3.clone(),
        seed: artifact.seed,
        url: artifact_url(artifact.id),
    }
}

/// Writes events and keeps them for the answer.
struct EventLog<'c> {
    connection: &'c Connection,
    at: &'c str,
    events: Vec<StoredEvent>,
}

impl<'c> EventLog<'c> {
    fn new(connection: &'c Connection, at: &'c str) -> Self {
        Self { connection, at, events: Vec::new() }
    }

    fn write(&mut self, job: JobId, kind: EventKind, data: Value) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT INTO events (job_id, kind, data, at) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![job.to_string(), kind.word(), data.to_string(), self.at])?;
        let id = self.connection.last_insert_rowid().cast_unsigned();
        self.events.push(StoredEvent { id, job, kind, data, at: self.at.to_owned() });
        Ok(())
    }

    fn state(&mut self, job: JobId, state: JobState, attempt: u32) -> Result<(), StoreError> {
        self.write(job, EventKind::State, json!({"state": state, "attempt": attempt}))
    }
}
