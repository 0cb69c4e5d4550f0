//! What can be asked. Each runs on a read-only connection inside one snapshot.

use super::StoreError;
use super::rows::{integer, json, json_option, parsed, plain, size};
use super::types::{Counts, QueuedJob, StoredArtifact, StoredEvent, StoredJob, artifact_url};
use atelier_protocol::http::{Artifact, Attempt, EventKind, JobState};
use atelier_protocol::{ArtifactId, DeviceId, JobId};
use rusqlite::{Connection, OptionalExtension, Row, params};

pub(super) fn job(connection: &Connection, id: JobId) -> Result<Option<StoredJob>, StoreError> {
    connection
        .prepare_cached("SELECT * FROM jobs WHERE id = ?1")?
        .query_and_then([id.to_string()], |row| read_job(connection, row))?
        .next()
        .transpose()
}

/// One page, newest first, and the cursor of the next.
pub(super) fn jobs(
    connection: &Connection,
    state: Option<JobState>,
    cursor: Option<&str>,
    limit: u32,
) -> Result<(Vec<StoredJob>, Option<String>), StoreError> {
    let before = cursor.map_or(Ok(i64::MAX), read_cursor)?;
    let mut statement = connection.prepare_cached(match state {
        // Two statements, so that each is answered by an index from its end.
        Some(_) => {
            "SELECT * FROM jobs WHERE state = ?1 AND queue_seq < ?2
             ORDER BY queue_seq DESC LIMIT ?3"
        }
        None => {
            "SELECT * FROM jobs WHERE ?1 IS NULL AND queue_seq < ?2
             ORDER BY queue_seq DESC LIMIT ?3"
        }
    })?;
    let asked = params![state.map(JobState::word), before, i64::from(limit) + 1];
    let mut page = statement
        .query_and_then(asked, |row| {
            Ok::<_, StoreError>((plain::<i64>(row, "queue_seq")?, read_job(connection, row)?))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let more = page.len() > limit as usize;
    page.truncate(limit as usize);
    let next = page.last().filter(|_| more).map(|(seq, _)| write_cursor(*seq));
    Ok((page.into_iter().map(|(_, job)| job).collect(), next))
}

pub(super) fn queued(connection: &Connection) -> Result<Vec<QueuedJob>, StoreError> {
    connection
        .prepare_cached(
            "SELECT id, attempt, request ->> 'device' AS device,
                 request ->> 'model' AS model FROM jobs
             WHERE state = 'queued' ORDER BY priority DESC, queue_seq",
        )?
        .query_and_then([], |row| {
            let device: Option<String> = plain(row, "device")?;
            Ok(QueuedJob {
                id: parsed(row, "id")?,
                attempt: plain(row, "attempt")?,
                device: device.map(DeviceId),
                model: plain(row, "model")?,
            })
        })?
        .collect()
}

/// Jobs ahead of a queued one.
pub(super) fn position(connection: &Connection, id: JobId) -> Result<Option<u32>, StoreError> {
    let place: Option<(i64, i64)> = connection
        .prepare_cached("SELECT priority, queue_seq FROM jobs WHERE id = ?1 AND state = 'queued'")?
        .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((priority, seq)) = place else { return Ok(None) };
    let ahead = connection
        .prepare_cached(
            "SELECT count(*) FROM jobs
             WHERE state = 'queued' AND (priority > ?1 OR (priority = ?1 AND queue_seq < ?2))",
        )?
        .query_row([priority, seq], |row| row.get(0))?;
    Ok(Some(ahead))
}

pub(super) fn counts(connection: &Connection) -> Result<Counts, StoreError> {
    let mut counts = Counts::default();
    let mut statement = connection.prepare_cached("SELECT state, jobs FROM job_counts")?;
    for row in statement.query_and_then([], |row| {
        Ok::<_, StoreError>((parsed::<JobState>(row, "state")?, size(row, "jobs")?))
    })? {
        let (state, jobs) = row?;
        match state {
            JobState::Queued => counts.queued = jobs,
            JobState::Running => counts.running = jobs,
            JobState::Succeeded => counts.succeeded = jobs,
            JobState::Failed => counts.failed = jobs,
            JobState::Cancelled => counts.cancelled = jobs,
        }
    }
    Ok(counts)
}

pub(super) fn events_after(
    connection: &Connection,
    job: Option<JobId>,
    after: u64,
    limit: u32,
) -> Result<Vec<StoredEvent>, StoreError> {
    let after = integer(after);
    let limit = i64::from(limit);
    match job {
        Some(job) => connection
            .prepare_cached(
                "SELECT * FROM events WHERE job_id = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
            )?
            .query_and_then(params![job.to_string(), after, limit], read_event)?
            .collect(),
        None => connection
            .prepare_cached("SELECT * FROM events WHERE id > ?1 ORDER BY id LIMIT ?2")?
            .query_and_then(params![after, limit], read_event)?
            .collect(),
    }
}

/// Number of the newest event; 0 before the first.
pub(super) fn last_event(connection: &Connection) -> Result<u64, StoreError> {
    let id: Option<i64> =
        connection.prepare_cached("SELECT max(id) FROM events")?.query_row([], |row| row.get(0))?;
    Ok(id.unwrap_or(0).cast_unsigned())
}

pub(super) fn artifact(
    connection: &Connection,
    id: ArtifactId,
) -> Result<Option<StoredArtifact>, StoreError> {
    connection
        .prepare_cached("SELECT * FROM artifacts WHERE id = ?1")?
        .query_and_then([id.to_string()], |row| {
            Ok(StoredArtifact {
                job: parsed(row, "job_id")?,
                artifact: read_artifact(row)?,
                path: plain::<String>(row, "path")?.into(),
            })
        })?
        .next()
        .transpose()
}

fn read_job(connection: &Connection, row: &Row<'_>) -> Result<StoredJob, StoreError> {
    let id: JobId = parsed(row, "id")?;
    let attempts = connection
        .prepare_cached("SELECT * FROM attempts WHERE job_id = ?1 ORDER BY number")?
        .query_and_then([id.to_string()], read_attempt)?
        .collect::<Result<_, _>>()?;
    let artifacts = connection
        .prepare_cached("SELECT * FROM artifacts WHERE job_id = ?1 ORDER BY idx")?
        .query_and_then([id.to_string()], read_artifact)?
        .collect::<Result<_, _>>()?;
    Ok(StoredJob {
        id,
        owner: plain(row, "owner")?,
        kind: plain(row, "kind")?,
        state: parsed(row, "state")?,
        request: json(row, "request")?,
        warnings: json(row, "warnings")?,
        attempt: plain(row, "attempt")?,
        cancel_requested: plain(row, "cancel_requested")?,
        created_at: plain(row, "created_at")?,
        started_at: plain(row, "started_at")?,
        ended_at: plain(row, "ended_at")?,
        attempts,
        artifacts,
        error: json_option(row, "error")?,
        timings: json(row, "timings")?,
    })
}

fn read_attempt(row: &Row<'_>) -> Result<Attempt, StoreError> {
    Ok(Attempt {
        number: plain(row, "number")?,
        device: plain(row, "device")?,
        worker_pid: plain(row, "worker_pid")?,
        started_at: plain(row, "started_at")?,
        ended_at: plain(row, "ended_at")?,
        outcome: plain(row, "outcome")?,
        cause: json_option(row, "cause")?,
    })
}

fn read_artifact(row: &Row<'_>) -> Result<Artifact, StoreError> {
    let id: ArtifactId = parsed(row, "id")?;
    Ok(Artifact {
        id,
        index: plain(row, "idx")?,
        media_type: plain(row, "media_type")?,
        width: plain(row, "width")?,
        height: plain(row, "height")?,
        bytes: size(row, "bytes")?,
        blake3: plain(row, "blake3")?,
        seed: plain::<i64>(row, "seed")?.cast_unsigned(), // as it was written: the same 64 bits
        url: artifact_url(id),
    })
}

fn read_event(row: &Row<'_>) -> Result<StoredEvent, StoreError> {
    let word: String = plain(row, "kind")?;
    let kind = EventKind::ALL
        .into_iter()
        .find(|kind| kind.word() == word)
        .ok_or_else(|| StoreError::corrupt(format!("an event of kind `{word}`")))?;
    Ok(StoredEvent {
        id: size(row, "id")?,
        job: parsed(row, "job_id")?,
        kind,
        data: json(row, "data")?,
        at: plain(row, "at")?,
    })
}

/// Opaque to clients: the place in the order of submission after which the next page begins.
fn write_cursor(seq: i64) -> String {
    format!("j{seq:x}")
}

fn read_cursor(cursor: &str) -> Result<i64, StoreError> {
    cursor
        .strip_prefix('j')
        .and_then(|digits| i64::from_str_radix(digits, 16).ok())
        .filter(|&seq| write_cursor(seq) == cursor) // exactly as given: no sign, no other spelling
        .ok_or_else(|| StoreError::Cursor { cursor: cursor.chars().take(64).collect() })
}
