//! A whole node without HTTP: the real store, the demo model's files, a scripted worker.

use atelier_engine::node::{Node, NodeConfig, SparePolicy, Submission, try_worker};
use atelier_protocol::ErrorCode;
use atelier_protocol::http::{EventKind, Job, JobState};
use atelier_testkit::{Script, ScriptedWorker};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

struct House {
    node: Node,
    worker: ScriptedWorker,
    config: NodeConfig,
    _data: tempfile::TempDir,
}

async fn house(scripts: impl IntoIterator<Item = Script>) -> House {
    house_with(scripts, |_| {}).await
}

async fn house_with(
    scripts: impl IntoIterator<Item = Script>,
    change: impl FnOnce(&mut NodeConfig),
) -> House {
    let data = tempfile::tempdir().unwrap();
    let worker = ScriptedWorker::new(scripts);
    let mut config = NodeConfig {
        data: data.path().to_owned(),
        envs: data.path().join("envs"),
        python: None,
        worker_command: Some(worker.command()),
        path: std::ffi::OsString::new(),
        model_folders: vec![atelier_testkit::models()],
        default_model: None,
        queue_limit: 5,
        max_attempts: 3,
        max_body_bytes: 1 << 20,
        idle_exit: None,
        warm_start: false,
        spare: SparePolicy::Off,
        recycle_growth: None,
    };
    change(&mut config);
    let node = Node::start(config.clone()).await.unwrap();
    House { node, worker, config, _data: data }
}

fn apple() -> Value {
    json!({"kind": "text_to_image", "prompt": "a red apple", "steps": 4, "seed": 5})
}

async fn submit(node: &Node, body: Value) -> Job {
    match node.submit(body, None).await.unwrap() {
        Submission::Accepted(job) | Submission::Replayed(job) => job,
    }
}

#[tokio::test]
async fn a_job_goes_from_queued_to_a_picture_that_remembers_how_it_was_made() {
    let house = house([Script::good()]).await;
    let job = submit(&house.node, apple()).await;
    let job = house.node.wait(job.id, LONG).await.unwrap();
    assert_eq!(job.state, JobState::Succeeded, "{:?}", job.error);
    assert_eq!(job.artifacts.len(), 1);
    assert_eq!((job.request.width, job.request.height), (128, 128));
    let (artifact, path) = house.node.artifact(job.artifacts[0].id).await.unwrap();
    let bytes = atelier_engine::files::read(&path).unwrap();
    assert_eq!(blake3::hash(&bytes).to_hex().to_string(), artifact.blake3);
    assert!(bytes.starts_with(b"\x89PNG"));
    let attempt = &job.attempts[0];
    assert_eq!((attempt.number, attempt.outcome.as_deref()), (1, Some("succeeded")));
    assert_eq!(attempt.device.as_deref(), Some("cpu"));
    assert!(attempt.worker_pid.is_some());
    assert!(job.timings.total_ms.is_some());
}

#[tokio::test]
async fn four_pictures_have_four_seeds_in_a_row() {
    let house = house([Script::good()]).await;
    let mut body = apple();
    body["count"] = json!(4);
    let job = submit(&house.node, body).await;
    let job = house.node.wait(job.id, LONG).await.unwrap();
    let seeds: Vec<_> = job.artifacts.iter().map(|a| a.seed).collect();
    assert_eq!(seeds, [5, 6, 7, 8]);
    let hashes: BTreeSet<_> = job.artifacts.iter().map(|a| &a.blake3).collect();
    assert_eq!(hashes.len(), 4);
}

#[tokio::test]
async fn a_worker_killed_in_the_middle_costs_an_attempt_and_not_the_job() {
    let house = house([Script::good().crash_at(2), Script::good()]).await;
    let job = submit(&house.node, apple()).await;
    let job = house.node.wait(job.id, LONG).await.unwrap();
    assert_eq!(job.state, JobState::Succeeded, "{:?}", job.error);
    let outcomes: Vec<_> = job.attempts.iter().map(|a| a.outcome.as_deref().unwrap()).collect();
    assert_eq!(outcomes, ["lost", "succeeded"]);
    let cause = job.attempts[0].cause.as_ref().unwrap();
    assert_eq!(cause.code, ErrorCode::WorkerCrashed);
    assert!(cause.details.iter().any(|d| d.message.contains("SIGKILL")), "{cause:?}");
    assert_eq!(house.worker.starts(), 2);
}

#[tokio::test]
async fn a_job_that_ends_every_worker_is_set_aside_with_the_evidence() {
    let house = house([Script::good().crash_at(1).crash_signal(11)]).await;
    let job = submit(&house.node, apple()).await;
    let job = house.node.wait(job.id, LONG).await.unwrap();
    assert_eq!(job.state, JobState::Failed);
    let error = job.error.unwrap();
    assert_eq!(error.code, ErrorCode::ProcessingSetAside);
    assert_eq!(error.details.len(), 3);
    assert!(job.artifacts.is_empty());
}

#[tokio::test]
async fn workers_killed_from_outside_are_not_held_against_the_job() {
    let killed = || Script::good().crash_at(1);
    let house = house([killed(), killed(), killed(), killed(), Script::good()]).await;
    let job = submit(&house.node, apple()).await;
    let job = house.node.wait(job.id, LONG).await.unwrap();
    assert_eq!(job.state, JobState::Succeeded, "{:?}", job.error);
    assert_eq!(job.attempts.len(), 5);
}

#[tokio::test]
async fn a_model_that_ends_its_workers_is_left_alone_and_refused_with_a_time_to_wait() {
    let house = house([Script::good().crash_at(1).crash_signal(11)]).await;
    let job = submit(&house.node, apple()).await;
    house.node.wait(job.id, LONG).await.unwrap();
    let error = house.node.submit(apple(), None).await.expect_err("three losses in a row");
    assert_eq!(error.code, ErrorCode::ModelBroken);
    let wait = error.details.iter().find(|d| d.field == "retry_after_s").unwrap();
    assert!((1..=31).contains(&wait.message.parse::<u64>().unwrap()), "{wait:?}");
    assert!(house.node.devices().iter().all(|device| device.state != "quarantined"));
}

#[tokio::test]
async fn a_wrong_checksum_is_never_a_picture() {
    let house = house([Script::good().wrong_crc(), Script::good()]).await;
    let job = submit(&house.node, apple()).await;
    let job = house.node.wait(job.id, LONG).await.unwrap();
    assert_eq!(job.state, JobState::Succeeded);
    let cause = job.attempts[0].cause.as_ref().unwrap();
    assert_eq!(cause.code, ErrorCode::ProtocolViolation, "{cause:?}");
}

#[tokio::test]
async fn a_typed_failure_of_the_worker_ends_the_job_with_that_code_and_no_retry() {
    let house = house([Script::good().fail("inference.failed")]).await;
    let job = submit(&house.node, apple()).await;
    let job = house.node.wait(job.id, LONG).await.unwrap();
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.error.unwrap().code, ErrorCode::InferenceFailed);
    assert_eq!(job.attempts.len(), 1);
}

#[tokio::test]
async fn whatever_a_worker_says_was_wrong_is_what_the_job_says() {
    let codes = [
        ErrorCode::DeviceUnsupported,
        ErrorCode::MemoryExhausted,
        ErrorCode::ModelUnreadable,
        ErrorCode::WorkerInternal,
    ];
    for code in codes {
        let house = house([Script::good().fail(code.word())]).await;
        let job = submit(&house.node, apple()).await;
        let job = house.node.wait(job.id, LONG).await.unwrap();
        let error = job.error.unwrap();
        assert_eq!((error.code, error.hint), (code, code.hint()));
    }
}

#[tokio::test]
async fn every_stage_of_a_finished_job_is_timed() {
    let house = house([Script::good()]).await;
    let job = submit(&house.node, apple()).await;
    let timings = house.node.wait(job.id, LONG).await.unwrap().timings;
    let stages = [
        timings.queue_ms,
        timings.load_ms,
        timings.encode_ms,
        timings.denoise_ms,
        timings.decode_ms,
        timings.post_ms,
    ];
    let sum: f64 = stages.iter().map(|stage| stage.expect("each stage is timed")).sum();
    assert_eq!(
        (timings.encode_ms, timings.denoise_ms),
        (Some(1.0), Some(4.0)),
        "as the worker says"
    );
    assert!(timings.total_ms.unwrap() > 0.0 && sum > 0.0, "{timings:?}");
}

/// The demo model with a tensor of a tebibyte in its UNet: on disk it is a hole, in the header it is real.
fn giant(folder: &Path) {
    const BYTES: u64 = 1 << 40;
    let from = atelier_testkit::models().join("demo");
    let to = folder.join("giant");
    for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        atelier_engine::files::create_dir_all(&to.join(part)).unwrap();
        for file in atelier_engine::files::read_dir(&from.join(part)).unwrap() {
            std::os::unix::fs::symlink(&file, to.join(part).join(file.file_name().unwrap()))
                .unwrap();
        }
    }
    std::os::unix::fs::symlink(from.join("model_index.json"), to.join("model_index.json")).unwrap();
    let weights = to.join("unet/diffusion_pytorch_model.safetensors");
    let small = atelier_engine::files::read(&weights).unwrap();
    let (size, rest) = small.split_at(8);
    let size = usize::try_from(u64::from_le_bytes(size.try_into().unwrap())).unwrap();
    let (header, data) = rest.split_at(size);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let end = data.len() as u64;
    header["giant"] =
        json!({"dtype": "F32", "shape": [BYTES / 4], "data_offsets": [end, end + BYTES]});
    let header = header.to_string();
    let mut whole = (header.len() as u64).to_le_bytes().to_vec();
    whole.extend(header.as_bytes());
    whole.extend(data);
    atelier_engine::files::remove_file(&weights).unwrap(); // the link, not its target
    atelier_engine::files::write_atomic(&weights, &whole).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&weights).unwrap();
    file.set_len(whole.len() as u64 + BYTES).unwrap();
}

#[tokio::test]
async fn a_model_that_needs_more_than_the_machine_has_is_refused_with_the_arithmetic() {
    let folder = tempfile::tempdir().unwrap();
    giant(folder.path());
    let folder = folder.path().to_owned();
    let house = house_with([Script::good()], |config| config.model_folders.push(folder)).await;
    let mut body = apple();
    body["model"] = json!("giant");
    let job = submit(&house.node, body).await;
    let error = house.node.wait(job.id, LONG).await.unwrap().error.unwrap();
    assert_eq!(error.code, ErrorCode::MemoryInsufficient, "{error}");
    assert!(error.message.contains(" on cpu; ") && error.message.contains(" free = "), "{error}");
    // The node goes on.
    let mut body = apple();
    body["model"] = json!("demo");
    let job = submit(&house.node, body).await;
    assert_eq!(house.node.wait(job.id, LONG).await.unwrap().state, JobState::Succeeded);
}

#[tokio::test]
async fn a_trial_worker_says_what_it_is_and_is_gone_afterwards() {
    let house = house([Script::good()]).await;
    let scratch = house.config.data.join("scratch");
    let trial = try_worker(&house.config, scratch.clone(), LONG).await.unwrap().unwrap();
    assert_eq!(trial.versions["fake"], "scripted");
    assert!(trial.seconds_to_ready > 0.0 && !scratch.exists());
    // Without an environment there is nothing to try, and none is made.
    let config = NodeConfig { worker_command: None, ..house.config.clone() };
    assert_eq!(try_worker(&config, scratch.clone(), LONG).await.unwrap(), None);
    assert!(!config.envs.exists() && !scratch.exists());
}

#[tokio::test]
async fn a_trial_worker_that_does_not_start_is_tried_once_and_within_its_time() {
    let once = house([Script::good().hello("exit")]).await;
    let scratch = once.config.data.join("scratch");
    let error = try_worker(&once.config, scratch.clone(), LONG).await.expect_err("it exits");
    assert_eq!(error.code, ErrorCode::WorkerCrashed);
    assert_eq!(once.worker.starts(), 1);
    let silent = house([Script::good().hello("none")]).await;
    let short = Duration::from_millis(200);
    let error = try_worker(&silent.config, scratch, short).await.expect_err("it says nothing");
    assert_eq!(error.code, ErrorCode::WorkerUnresponsive);
}

#[tokio::test]
async fn cancel_ends_a_queued_and_a_running_job_once_each() {
    let house = house([Script::good().step_ms(30)]).await;
    let mut long = apple();
    long["steps"] = json!(100);
    let running = submit(&house.node, long.clone()).await;
    let queued = submit(&house.node, long).await;
    let cancelled = house.node.cancel(queued.id).await.unwrap();
    assert_eq!(cancelled.state, JobState::Cancelled);
    let mut events = house.node.events(Some(running.id), None).await.unwrap();
    while events.recv().await.is_some_and(|event| event.kind != EventKind::Progress) {}
    house.node.cancel(running.id).await.unwrap();
    let job = house.node.wait(running.id, LONG).await.unwrap();
    assert_eq!(job.state, JobState::Cancelled);
    assert!(job.artifacts.is_empty());
    let error = house.node.cancel(running.id).await.expect_err("it has ended");
    assert_eq!(error.code, ErrorCode::ProcessingConflict);
    let mut kinds = Vec::new();
    while let Some(event) = events.recv().await {
        kinds.push(event.kind);
    }
    assert_eq!(kinds.iter().filter(|kind| **kind == EventKind::End).count(), 1);
    assert_eq!(kinds.last(), Some(&EventKind::End));
}

#[tokio::test]
async fn a_worker_deaf_to_cancel_is_replaced_and_the_job_is_cancelled() {
    let house = house([Script::good().step_ms(200).deaf_to_cancel(), Script::good()]).await;
    let mut long = apple();
    long["steps"] = json!(100);
    let job = submit(&house.node, long).await;
    let mut events = house.node.events(Some(job.id), None).await.unwrap();
    while events.recv().await.is_some_and(|event| event.kind != EventKind::Progress) {}
    house.node.cancel(job.id).await.unwrap();
    let job = house.node.wait(job.id, LONG).await.unwrap();
    assert_eq!(job.state, JobState::Cancelled);
    let next = submit(&house.node, apple()).await;
    let next = house.node.wait(next.id, LONG).await.unwrap();
    assert_eq!(next.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_job_found_running_after_a_crash_completes_under_its_id() {
    let mut house = house([Script::good().freeze_at(2), Script::good()]).await;
    let job = submit(&house.node, apple()).await;
    let mut events = house.node.events(Some(job.id), None).await.unwrap();
    while events.recv().await.is_some_and(|event| event.kind != EventKind::Progress) {}
    // Stopping in order leaves the job in the store just as a crash does, only sooner noticed.
    house.node.stop().await;
    house.node = Node::start(house.config.clone()).await.unwrap();
    let job = house.node.wait(job.id, LONG).await.unwrap();
    assert_eq!(job.state, JobState::Succeeded, "{:?}", job.error);
    assert_eq!(job.attempts.len(), 2);
    assert_eq!(job.artifacts.len(), 1);
}

#[tokio::test]
async fn events_resume_after_any_id_and_always_end() {
    let house = house([Script::good()]).await;
    let job = submit(&house.node, apple()).await;
    house.node.wait(job.id, LONG).await.unwrap();
    let mut events = house.node.events(Some(job.id), None).await.unwrap();
    let mut ids = Vec::new();
    let mut last = None;
    while let Some(event) = events.recv().await {
        ids.extend(event.id);
        last = Some(event);
    }
    assert!(ids.is_sorted() && ids.len() >= 4, "{ids:?}");
    let last = last.unwrap();
    assert_eq!(last.kind, EventKind::End);
    assert_eq!(last.data["state"], "succeeded");
    for after in [ids[0], ids[ids.len() - 2], ids[ids.len() - 1]] {
        let mut events = house.node.events(Some(job.id), Some(after)).await.unwrap();
        let mut kinds = Vec::new();
        while let Some(event) = events.recv().await {
            kinds.push(event.kind);
        }
        assert_eq!(kinds.last(), Some(&EventKind::End), "after {after}");
    }
}

#[tokio::test]
async fn an_idempotency_key_makes_one_job_and_refuses_another_request() {
    let house = house([Script::good()]).await;
    let key = || Some("once".to_owned());
    let Submission::Accepted(first) = house.node.submit(apple(), key()).await.unwrap() else {
        panic!("the first is new");
    };
    let Submission::Replayed(again) = house.node.submit(apple(), key()).await.unwrap() else {
        panic!("the second is the same");
    };
    assert_eq!(first.id, again.id);
    let mut other = apple();
    other["seed"] = json!(6);
    let error = house.node.submit(other, key()).await.expect_err("another request");
    assert_eq!(error.code, ErrorCode::ProcessingConflict);
}

#[tokio::test]
async fn a_full_queue_says_so() {
    let house = house([Script::good().freeze_at(1)]).await;
    let mut refused = None;
    for _ in 0..8 {
        if let Err(error) = house.node.submit(apple(), None).await {
            refused = Some(error.code);
        }
    }
    assert_eq!(refused, Some(ErrorCode::ProcessingQueueFull));
}

#[tokio::test]
async fn every_problem_of_a_request_is_reported_at_once() {
    let house = house([Script::good()]).await;
    let body = json!({
        "kind": "text_to_image", "prompt": " ", "width": 130, "height": 4096, "steps": 0,
        "guidance_scale": -1, "seed": 1_u64 << 60, "count": 0, "scheduler": "wrong",
        "device": "cuda:9", "output": {"format": "bmp"},
    });
    let error = house.node.submit(body, None).await.expect_err("all of it is wrong");
    assert_eq!(error.code, ErrorCode::InferenceInvalid);
    let fields: BTreeSet<_> = error.details.iter().map(|d| d.field.as_str()).collect();
    let expected = [
        "count",
        "device",
        "guidance_scale",
        "height",
        "output.format",
        "prompt",
        "scheduler",
        "seed",
        "steps",
        "width",
    ];
    assert_eq!(fields, expected.into(), "{error:?}");
    let validation = house.node.validate(json!({"kind": "text_to_image", "n": 2})).await;
    let error = validation.error.unwrap();
    assert_eq!(error.code, ErrorCode::RequestInvalid);
    assert!(error.details.iter().any(|d| d.message.contains("`count`")), "{error:?}");
}

#[tokio::test]
async fn an_unknown_model_is_answered_with_the_nearest() {
    let house = house([Script::good()]).await;
    let mut body = apple();
    body["model"] = json!("dem");
    let error = house.node.submit(body, None).await.expect_err("no such model");
    assert_eq!(error.code, ErrorCode::ModelNotFound);
    assert!(error.message.contains("demo"), "{error}");
}

#[tokio::test]
async fn unknown_words_are_named_in_a_warning_and_known_ones_are_not() {
    let house = house([Script::good()]).await;
    let mut body = apple();
    body["prompt"] = json!("a 3d render of a red apple on a blue background");
    assert_eq!(house.node.validate(body.clone()).await.warnings, []);
    body["prompt"] = json!("a photorealistic cyberpunk apple");
    let warnings = house.node.validate(body).await.warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].message.contains("`photorealistic`"), "{warnings:?}");
    assert!(warnings[0].message.contains("`cyberpunk`"), "{warnings:?}");
}

#[tokio::test]
async fn the_views_show_the_device_the_model_and_the_memory() {
    let house = house([Script::good()]).await;
    let job = submit(&house.node, apple()).await;
    house.node.wait(job.id, LONG).await.unwrap();
    let devices = house.node.devices();
    let cpu = devices.iter().find(|d| d.id == "cpu").unwrap();
    assert!(cpu.capabilities.numerics.is_some(), "chosen by the first job");
    let model = house.node.model("demo").unwrap();
    assert_eq!(model.resident_on, ["cpu"]);
    assert!(model.default);
    assert!((23_000_000..25_000_000).contains(&model.parameters), "{}", model.parameters);
    let memory = house.node.memory();
    let cpu = memory.iter().find(|m| m.device == "cpu").unwrap();
    assert!(cpu.promised_bytes > 0 && cpu.promised_bytes < cpu.total_bytes);
    assert!(house.node.readiness().ok);
}
