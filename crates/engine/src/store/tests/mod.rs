//! What the store promises, told as stories. The whole contract at once is in [`property`].

mod property;
mod writing;

use super::*;
use crate::files;
use atelier_protocol::http::Timings;
use atelier_protocol::http::{EventKind, JobState, Progress, ResolvedOutput, ResolvedRequest};
use atelier_protocol::{ArtifactId, Detail, DeviceId, ErrorBody, ErrorCode, JobId};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;
use uuid::Uuid;

const NOW: &str = "2026-01-01T00:00:00.000Z";
const LATER: &str = "2026-01-01T00:00:05.000Z";

fn now() -> String {
    NOW.to_owned()
}

fn open(folder: &Path) -> Store {
    let identity = Identity { node_id: Uuid::now_v7(), boot_id: Uuid::now_v7() };
    Store::open(&folder.join("atelier.db"), identity).unwrap()
}

fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    (folder, store)
}

/// The files as a killed process leaves them: what was written is there, nothing is closed.
fn copy_as_after_a_kill(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["atelier.db", "atelier.db-wal"] {
        if let Ok(bytes) = files::read(&folder.join(name)) {
            files::write_atomic(&copy.path().join(name), &bytes).unwrap();
        }
    }
    copy
}

fn request() -> ResolvedRequest {
    ResolvedRequest {
        kind: "text_to_image".to_owned(),
        model: "demo".to_owned(),
        prompt: "a strawberry".to_owned(),
        negative_prompt: String::new(),
        width: 128,
        height: 128,
        steps: 20,
        guidance_scale: 4.0,
        scheduler: "ddim".to_owned(),
        seed: 3,
        count: 1,
        output: ResolvedOutput { format: "png".to_owned(), quality: None, metadata: true },
        device: None,
        noise_source: "torch_cpu".to_owned(),
        batching: "alone".to_owned(),
        labels: BTreeMap::from([("for".to_owned(), "a test".to_owned())]),
    }
}

fn new_job() -> NewJob {
    NewJob {
        id: JobId::mint(),
        owner: "local".to_owned(),
        kind: "text_to_image".to_owned(),
        request: request(),
        warnings: Vec::new(),
        created_at: now(),
        idempotency: None,
        queue_limit: 1000,
    }
}

fn with_key(key: &str, body_hash: &str) -> NewJob {
    let idempotency = Idempotency { key: key.to_owned(), body_hash: body_hash.to_owned() };
    NewJob { idempotency: Some(idempotency), ..new_job() }
}

async fn submitted(store: &Store) -> JobId {
    let job = new_job();
    let id = job.id;
    assert!(matches!(store.submit(job).await.unwrap(), Submitted::New { .. }));
    id
}

async fn claimed(store: &Store, job: JobId) -> u32 {
    match store.claim(job, now(), LATER.to_owned()).await.unwrap() {
        Claim::Claimed { attempt, .. } => attempt,
        Claim::NotQueued => panic!("{job} is not queued"),
    }
}

fn artifact(index: u32) -> NewArtifact {
    NewArtifact {
        id: ArtifactId::mint(),
        index,
        media_type: "image/png".to_owned(),
        width: 128,
        height: 128,
        seed: u64::MAX - u64::from(index),
        file: StoredFile {
            blake3: "ab".repeat(32),
            relative_path: format!("ab/{}.png", "ab".repeat(31)),
            bytes: 1234,
        },
    }
}

fn succeeded(artifacts: Vec<NewArtifact>) -> Ending {
    Ending {
        state: EndState::Succeeded,
        artifacts,
        error: None,
        timings: Timings { denoise_ms: Some(12.5), ..Timings::default() },
        outcome: AttemptOutcome::Succeeded,
        cause: None,
    }
}

fn kinds(events: &[StoredEvent]) -> Vec<&'static str> {
    events.iter().map(|event| event.kind.word()).collect()
}

#[tokio::test]
async fn a_job_is_read_back_with_everything_that_happened_to_it() {
    let (_folder, store) = store();
    let warning = Detail::new("prompt", "the model knows no `zebra`");
    let new = NewJob { warnings: vec![warning.clone()], ..new_job() };
    let id = new.id;
    let Submitted::New { events } = store.submit(new).await.unwrap() else { panic!("new") };
    assert_eq!(kinds(&events), ["state", "warning"]);
    assert_eq!(claimed(&store, id).await, 1);
    let assigned = store.assign(id, 1, DeviceId::cpu(), Some(42)).await.unwrap();
    assert_eq!(assigned, Assigned::Yes);
    let picture = artifact(0);
    let ending = succeeded(vec![picture.clone()]);
    let Finalised::Done { events } = store.finalise(id, 1, ending, LATER.to_owned()).await.unwrap()
    else {
        panic!("the attempt is current")
    };
    assert_eq!(kinds(&events), ["artifact", "state", "end"]);

    let stored = store.job(id).await.unwrap().expect("it was submitted");
    assert_eq!(stored.state, JobState::Succeeded);
    assert_eq!(stored.request, request());
    assert_eq!(stored.warnings, [warning]);
    assert_eq!(stored.started_at.as_deref(), Some(NOW));
    assert_eq!(stored.ended_at.as_deref(), Some(LATER));
    assert_eq!(stored.timings.denoise_ms, Some(12.5));
    assert_eq!(stored.attempts.len(), 1);
    assert_eq!(stored.attempts[0].device.as_deref(), Some("cpu"));
    assert_eq!(stored.attempts[0].worker_pid, Some(42));
    assert_eq!(stored.attempts[0].outcome.as_deref(), Some("succeeded"));
    assert_eq!(stored.artifacts[0].seed, u64::MAX);
    assert_eq!(json!(stored.artifacts[0]), events[0].data);

    let found = store.artifact(picture.id).await.unwrap().expect("it was finalised");
    assert_eq!((found.job, &found.artifact), (id, &stored.artifacts[0]));
    assert_eq!(found.path, Path::new(&picture.file.relative_path));
    assert_eq!(found.artifact.url, format!("/v1/artifacts/{}", picture.id));

    let all = store.events_after(Some(id), 0, 100).await.unwrap();
    assert_eq!(kinds(&all), ["state", "warning", "state", "artifact", "state", "end"]);
    assert_eq!(all[0].data, json!({"state": "queued", "attempt": 0}));
    assert_eq!(all[2].data, json!({"state": "running", "attempt": 1}));
    assert_eq!(all[5].data, json!(null));
    assert_eq!(store.last_event().await.unwrap(), all[5].id);
    let job = stored.into_job(Progress::default());
    assert_eq!((job.id, job.artifacts.len()), (id, 1));
}

#[tokio::test]
async fn an_attempt_that_was_overtaken_can_change_nothing() {
    let (_folder, store) = store();
    let id = submitted(&store).await;
    claimed(&store, id).await;
    let cause = ErrorBody::new(ErrorCode::WorkerCrashed, "the worker got signal 9");
    let requeued =
        store.requeue(id, 1, AttemptOutcome::Lost, Some(cause.clone()), now()).await.unwrap();
    assert!(matches!(requeued, Requeued::Yes { .. }));
    assert_eq!(claimed(&store, id).await, 2);

    let late = succeeded(vec![artifact(0)]);
    assert_eq!(store.finalise(id, 1, late, now()).await.unwrap(), Finalised::Stale);
    let stale = store.assign(id, 1, DeviceId::cpu(), None).await.unwrap();
    assert_eq!(stale, Assigned::Stale);
    let again = store.requeue(id, 1, AttemptOutcome::Failed, None, now()).await.unwrap();
    assert_eq!(again, Requeued::Stale);

    let stored = store.job(id).await.unwrap().unwrap();
    assert_eq!((stored.state, stored.attempt), (JobState::Running, 2));
    assert!(stored.artifacts.is_empty());
    assert_eq!(stored.attempts[0].cause, Some(cause));
    assert_eq!(stored.attempts[1].outcome, None);
}

#[tokio::test]
async fn a_cancel_ends_a_queued_job_and_stays_with_a_running_one() {
    let (_folder, store) = store();
    let (waiting, running) = (submitted(&store).await, submitted(&store).await);
    let CancelOutcome::Cancelled { events } = store.request_cancel(waiting, now()).await.unwrap()
    else {
        panic!("it was queued")
    };
    assert_eq!(kinds(&events), ["state", "end"]);
    let stored = store.job(waiting).await.unwrap().unwrap();
    assert_eq!(stored.error.unwrap().code, ErrorCode::ProcessingCancelled);
    let again = store.request_cancel(waiting, now()).await.unwrap();
    assert_eq!(again, CancelOutcome::Ended(JobState::Cancelled));
    assert_eq!(store.claim(waiting, now(), now()).await.unwrap(), Claim::NotQueued);

    claimed(&store, running).await;
    assert_eq!(store.request_cancel(running, now()).await.unwrap(), CancelOutcome::Requested);
    let again = store.request_cancel(running, now()).await.unwrap();
    assert_eq!(again, CancelOutcome::AlreadyRequested);
    assert!(store.job(running).await.unwrap().unwrap().cancel_requested);
    let nobody = store.request_cancel(JobId::mint(), now()).await.unwrap();
    assert_eq!(nobody, CancelOutcome::NotFound);
}

#[tokio::test]
async fn a_job_whose_cancel_was_asked_for_ends_instead_of_returning_to_the_line() {
    let (_folder, store) = store();
    let id = submitted(&store).await;
    claimed(&store, id).await;
    store.request_cancel(id, now()).await.unwrap();
    let Requeued::Cancelled { events } =
        store.requeue(id, 1, AttemptOutcome::Lost, None, now()).await.unwrap()
    else {
        panic!("its cancel was asked for")
    };
    assert_eq!(kinds(&events), ["state", "end"]);
    assert_eq!(store.job(id).await.unwrap().unwrap().state, JobState::Cancelled);
}

#[tokio::test]
async fn what_a_killed_node_left_running_is_taken_back_in_its_old_place() {
    let (folder, store) = store();
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(submitted(&store).await);
    }
    claimed(&store, ids[0]).await;
    claimed(&store, ids[2]).await;
    store.request_cancel(ids[2], now()).await.unwrap();

    let copy = copy_as_after_a_kill(folder.path());
    let next = open(copy.path());
    let recovered = next.recover(LATER.to_owned()).await.unwrap();
    assert_eq!((recovered.requeued, recovered.cancelled), (vec![ids[0]], vec![ids[2]]));
    assert_eq!(kinds(&recovered.events), ["state", "state", "end"]);
    let line: Vec<JobId> = next.queued().await.unwrap().iter().map(|job| job.id).collect();
    assert_eq!(line, [ids[0], ids[1], ids[3]]);
    assert_eq!(next.position(ids[3]).await.unwrap(), Some(2));
    assert_eq!(next.position(ids[2]).await.unwrap(), None);
    let attempts = next.job(ids[0]).await.unwrap().unwrap().attempts;
    assert_eq!(attempts[0].outcome.as_deref(), Some("lost"));
    assert_eq!(attempts[0].cause.as_ref().unwrap().code, ErrorCode::NodeStopping);
    // What runs under this boot is nobody else's business.
    claimed(&next, ids[1]).await;
    assert_eq!(next.recover(now()).await.unwrap(), Recovered::default());
}

#[tokio::test]
async fn a_key_makes_one_job_for_a_day_and_only_with_the_same_body() {
    let (_folder, store) = store();
    let first = with_key("k", "one");
    let id = first.id;
    assert!(matches!(store.submit(first).await.unwrap(), Submitted::New { .. }));
    // Also when there is no room for another job.
    let again = NewJob { queue_limit: 1, ..with_key("k", "one") };
    assert_eq!(store.submit(again).await.unwrap(), Submitted::Replayed { job: id });
    assert_eq!(store.submit(with_key("k", "two")).await.unwrap(), Submitted::Conflict);
    let other_owner = NewJob { owner: "somebody".to_owned(), ..with_key("k", "two") };
    assert!(matches!(store.submit(other_owner).await.unwrap(), Submitted::New { .. }));
    let almost = "2026-01-01T23:59:59.999Z".to_owned();
    let same_day = NewJob { created_at: almost, ..with_key("k", "one") };
    assert_eq!(store.submit(same_day).await.unwrap(), Submitted::Replayed { job: id });
    let tomorrow = "2026-01-02T00:00:00.000Z".to_owned();
    let next_day = NewJob { created_at: tomorrow, ..with_key("k", "two") };
    assert!(matches!(store.submit(next_day).await.unwrap(), Submitted::New { .. }));
}

#[tokio::test]
async fn a_full_queue_says_how_long_it_is_and_takes_jobs_again_when_one_leaves() {
    let (_folder, store) = store();
    let small = || NewJob { queue_limit: 2, ..new_job() };
    let first = small();
    let id = first.id;
    store.submit(first).await.unwrap();
    store.submit(small()).await.unwrap();
    assert_eq!(store.submit(small()).await.unwrap(), Submitted::QueueFull { queued: 2 });
    claimed(&store, id).await;
    assert!(matches!(store.submit(small()).await.unwrap(), Submitted::New { .. }));
    let counts = store.counts().await.unwrap();
    assert_eq!(counts, Counts { queued: 2, running: 1, ..Counts::default() });
}

#[tokio::test]
async fn lists_are_newest_first_and_pages_neither_repeat_nor_skip() {
    let (_folder, store) = store();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(submitted(&store).await);
    }
    claimed(&store, ids[1]).await;
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let (page, next) = store.jobs(None, cursor, 2).await.unwrap();
        assert!(page.len() <= 2);
        seen.extend(page.iter().map(|job| job.id));
        // A job that arrives meanwhile must not shift the pages.
        submitted(&store).await;
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    ids.reverse();
    assert_eq!(seen, ids);
    let (running, next) = store.jobs(Some(JobState::Running), None, 1).await.unwrap();
    assert_eq!((running[0].id, next), (ids[3], None));
}

#[tokio::test]
async fn a_made_up_cursor_is_a_bad_request() {
    let (_folder, store) = store();
    for cursor in ["", "1", "j", "jx", "j+1", "j01", "j-1", "j1'; DROP TABLE jobs"] {
        let error = store.jobs(None, Some(cursor.to_owned()), 5).await.expect_err(cursor);
        let body = ErrorBody::from(error);
        assert_eq!((body.code, body.details.len()), (ErrorCode::RequestInvalid, 1), "{cursor}");
    }
}

#[tokio::test]
async fn events_resume_after_any_number_and_stop_at_the_limit() {
    let (_folder, store) = store();
    let (one, two) = (submitted(&store).await, submitted(&store).await);
    claimed(&store, one).await;
    store.finalise(one, 1, succeeded(vec![]), now()).await.unwrap();
    let all = store.events_after(None, 0, 100).await.unwrap();
    assert!(all.is_sorted_by(|a, b| a.id < b.id));
    assert_eq!(all.len(), 5);
    let rest = store.events_after(None, all[1].id, 2).await.unwrap();
    assert_eq!(rest, all[2..4]);
    let of_two = store.events_after(Some(two), 0, 100).await.unwrap();
    assert_eq!(of_two, all[1..2]);
    assert_eq!(of_two[0].kind, EventKind::State);
    assert_eq!(store.events_after(None, u64::MAX, 100).await.unwrap(), []);
}

#[tokio::test]
async fn a_store_keeps_the_node_id_that_it_was_made_with() {
    let (folder, store) = store();
    let made_with = store.identity();
    store.set_setting("numerics.cpu", json!({"threads": 2})).await.unwrap();
    store.close().await.unwrap();
    let again = open(folder.path());
    assert_eq!(again.identity().node_id, made_with.node_id);
    assert_ne!(again.identity().boot_id, made_with.boot_id);
    let profile = again.setting("numerics.cpu").await.unwrap();
    assert_eq!(profile, Some(json!({"threads": 2})));
    assert_eq!(again.setting("nothing").await.unwrap(), None);
}

#[tokio::test]
async fn only_an_unclean_stop_makes_the_next_start_check_the_file() {
    let (folder, store) = store();
    submitted(&store).await;
    assert_eq!(*store.integrity().borrow(), Integrity::NotChecked);
    let killed = copy_as_after_a_kill(folder.path());
    store.close().await.unwrap();
    let after_clean = open(folder.path());
    assert_eq!(*after_clean.integrity().borrow(), Integrity::NotChecked);

    let after_kill = open(killed.path());
    let mut integrity = after_kill.integrity();
    let found = integrity.wait_for(|state| *state != Integrity::Checking).await.unwrap().clone();
    assert_eq!(found, Integrity::Sound);
    after_kill.close().await.unwrap();
    assert_eq!(*open(killed.path()).integrity().borrow(), Integrity::NotChecked);
}

#[tokio::test]
async fn after_close_everything_is_refused_and_the_log_is_folded_in() {
    let (folder, store) = store();
    let id = submitted(&store).await;
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(store.submit(new_job()).await.unwrap_err().code(), ErrorCode::StoreUnavailable);
    assert_eq!(store.job(id).await.unwrap_err().code(), ErrorCode::StoreUnavailable);
    let left: Vec<_> = files::read_dir(folder.path())
        .unwrap()
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(left, ["atelier.db"]);
    assert!(open(folder.path()).job(id).await.unwrap().is_some());
}
