//! The writer: groups, failures inside a group, a full disk, races.

use super::*;
use futures_util::future::join_all;
use rusqlite::Connection;
use std::sync::mpsc;

fn set(key: &'static str) -> impl FnOnce(&Connection) -> Result<(), StoreError> + Send {
    move |db| settings::set(db, key, &json!(1))
}

/// Holds the writer until `let_go`, so that what is sent meanwhile becomes one group.
fn hold() -> (impl FnOnce(&Connection) -> Result<(), StoreError> + Send, mpsc::Sender<()>) {
    let (let_go, held) = mpsc::channel();
    let change = move |_: &Connection| {
        let _ = held.recv(); // gone is as good as let go
        Ok(())
    };
    (change, let_go)
}

#[tokio::test]
async fn a_failing_operation_undoes_itself_and_none_of_its_group() {
    let (_folder, store) = store();
    let (change, let_go) = hold();
    let (held, one, bad, two, ()) = tokio::join!(
        store.write(change),
        store.write(set("one")),
        store.write(|db| {
            settings::set(db, "bad", &json!(1))?;
            Err::<(), _>(StoreError::corrupt("a test"))
        }),
        store.write(set("two")),
        async move { let_go.send(()).unwrap() },
    );
    held.unwrap();
    one.unwrap();
    two.unwrap();
    assert_eq!(bad.unwrap_err().code(), ErrorCode::StoreCorrupt);
    assert_eq!(store.setting("one").await.unwrap(), Some(json!(1)));
    assert_eq!(store.setting("two").await.unwrap(), Some(json!(1)));
    assert_eq!(store.setting("bad").await.unwrap(), None);
}

#[tokio::test]
async fn a_failed_commit_is_the_answer_to_everyone_in_the_group() {
    let (_folder, store) = store();
    let (change, let_go) = hold();
    let orphan = "INSERT INTO attempts (job_id, number, started_at) VALUES ('nobody', 1, '')";
    let (held, one, two, ()) = tokio::join!(
        store.write(change),
        store.write(set("one")),
        // Checked at the commit and not before.
        store.write(move |db| {
            db.execute_batch(&format!("PRAGMA defer_foreign_keys = on; {orphan}"))?;
            Ok(())
        }),
        async move { let_go.send(()).unwrap() },
    );
    for answer in [held, one, two] {
        assert_eq!(answer.unwrap_err().code(), ErrorCode::Internal);
    }
    assert_eq!(store.setting("one").await.unwrap(), None);
    store.write(set("three")).await.unwrap();
    assert_eq!(store.setting("three").await.unwrap(), Some(json!(1)));
}

#[tokio::test]
async fn a_full_disk_is_named_loses_nothing_and_heals_by_itself() {
    let (folder, store) = store();
    let limit = |pages: i64| {
        store.write(move |db| {
            let count: i64 = db.pragma_query_value(None, "page_count", |row| row.get(0))?;
            db.pragma_update(None, "max_page_count", count + pages)?;
            Ok(())
        })
    };
    limit(8).await.unwrap();
    let mut accepted = Vec::new();
    let error = loop {
        let mut job = new_job();
        job.request.prompt = "long ".repeat(400);
        let id = job.id;
        match store.submit(job).await {
            Ok(_) => accepted.push(id),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), ErrorCode::StoreFull);
    limit(1000).await.unwrap();
    accepted.push(submitted(&store).await);
    let copy = copy_as_after_a_kill(folder.path());
    let killed = open(copy.path());
    let line: Vec<JobId> = killed.queued().await.unwrap().iter().map(|job| job.id).collect();
    assert_eq!(line, accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_ask_at_once_one_submits_one_claims_and_one_finalises() {
    let (_folder, store) = store();
    let submits = join_all((0..32).map(|_| store.submit(with_key("k", "body")))).await;
    let new = submits.iter().filter(|s| matches!(s, Ok(Submitted::New { .. }))).count();
    assert_eq!(new, 1);
    let line = store.queued().await.unwrap();
    assert_eq!(line.len(), 1);
    let id = line[0].id;

    let claims = join_all((0..32).map(|_| store.claim(id, now(), now()))).await;
    let won = claims.iter().filter(|c| matches!(c, Ok(Claim::Claimed { .. }))).count();
    assert_eq!(won, 1);

    let ends =
        join_all((0..32).map(|_| store.finalise(id, 1, succeeded(vec![artifact(0)]), now()))).await;
    let won = ends.iter().filter(|f| matches!(f, Ok(Finalised::Done { .. }))).count();
    assert_eq!(won, 1);
    assert_eq!(store.job(id).await.unwrap().unwrap().artifacts.len(), 1);
}

#[tokio::test]
async fn the_schema_itself_lets_no_job_leave_its_end() {
    let (_folder, store) = store();
    let id = submitted(&store).await;
    store.request_cancel(id, now()).await.unwrap();
    let revive = store.write(move |db| {
        db.execute("UPDATE jobs SET state = 'queued', ended_at = NULL", [])?;
        Ok(())
    });
    assert_eq!(revive.await.unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(store.job(id).await.unwrap().unwrap().state, JobState::Cancelled);
}

#[tokio::test]
async fn two_outputs_with_one_place_are_refused_whole() {
    let (_folder, store) = store();
    let id = submitted(&store).await;
    claimed(&store, id).await;
    let twice = succeeded(vec![artifact(0), artifact(0)]);
    let error = store.finalise(id, 1, twice, now()).await.expect_err("one place, two outputs");
    assert_eq!(error.code(), ErrorCode::Internal);
    let stored = store.job(id).await.unwrap().unwrap();
    assert_eq!((stored.state, stored.artifacts.len()), (JobState::Running, 0));
    assert_eq!(stored.attempts[0].outcome, None);
}
