//! The supervisor over real processes that misbehave on command.

use atelier_engine::clock::Clock;
use atelier_engine::worker::{
    Launcher, Preparation, ProcessSpawner, RunEvent, SlotFile, StartProgress, SupervisorConfig,
    WorkerCommand, WorkerHandle, WorkerState,
};
use atelier_protocol::worker::{FromWorker, PlanStep, RunItem, SchedulerPlan, ToWorker, Work};
use atelier_protocol::{DeviceId, ErrorCode, JobId, RunId};
use atelier_testkit::{Script, ScriptedWorker};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

struct Fixed(Vec<String>);

impl Launcher for Fixed {
    fn prepare(&self, _: mpsc::Sender<StartProgress>) -> Preparation {
        let command = self.0.clone();
        Box::pin(async move {
            Ok(WorkerCommand {
                program: PathBuf::from(&command[0]),
                args: command[1..].iter().map(Into::into).collect(),
                env: Vec::new(),
            })
        })
    }
}

fn supervise(worker: &ScriptedWorker, config: SupervisorConfig) -> WorkerHandle {
    supervise_command(worker.command(), config)
}

fn supervise_command(mut command: Vec<String>, config: SupervisorConfig) -> WorkerHandle {
    command.extend(["--parent".to_owned(), std::process::id().to_string()]);
    let spawner = Arc::new(ProcessSpawner::start().unwrap());
    WorkerHandle::start(config, spawner, Arc::new(Fixed(command)), Clock::system())
}

fn quick() -> SupervisorConfig {
    SupervisorConfig {
        back_off: (Duration::from_millis(1), Duration::from_millis(10)),
        stop_grace: Duration::from_millis(300),
        ..SupervisorConfig::default()
    }
}

fn run_message(steps: u32) -> (Work, ToWorker, SlotFile) {
    let slot = SlotFile::new(64 * 64 * 3).unwrap();
    let work = Work { run: RunId::mint(), job: JobId::mint(), attempt: 1 };
    let scheduler = SchedulerPlan { class: "DDIMScheduler".into(), config: Default::default() };
    let message = ToWorker::Run {
        run: work.run,
        model: "m".into(),
        device: DeviceId::cpu(),
        items: vec![RunItem { job: work.job, attempt: 1, seed: 7, slot: slot.describe() }],
        steps: vec![
            PlanStep::MakeLatents { width: 64, height: 64 },
            PlanStep::Denoise { scheduler, steps, guidance_scale: 4.0, from: 0, to: steps },
            PlanStep::Decode {},
        ],
    };
    (work, message, slot)
}

async fn last_event(mut events: mpsc::Receiver<RunEvent>) -> RunEvent {
    let mut last = None;
    while let Some(event) = events.recv().await {
        last = Some(event);
    }
    last.expect("a run has at least one event")
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_worker_is_ready_only_after_it_said_so_and_draws() {
    let worker = ScriptedWorker::new([Script::good().import_ms(50)]);
    let handle = supervise(&worker, quick());
    assert_eq!(handle.view().state, WorkerState::Absent);
    assert_eq!(handle.ready().await.unwrap(), 1);
    assert_eq!(handle.view().versions["fake"], "scripted");
    let (_, message, _slot) = run_message(3);
    let last = last_event(handle.run(message).await.unwrap()).await;
    assert!(matches!(last, RunEvent::Message(FromWorker::Done { .. })), "{last:?}");
    handle.shutdown().await;
    assert_eq!(handle.view().state, WorkerState::Absent);
}

#[tokio::test]
async fn a_killed_worker_is_told_with_its_signal_and_last_words_and_the_next_one_works() {
    let worker = ScriptedWorker::new([Script::good().crash_at(2), Script::good()]);
    let handle = supervise(&worker, quick());
    handle.ready().await.unwrap();
    let (_, message, _slot) = run_message(5);
    let last = last_event(handle.run(message).await.unwrap()).await;
    let RunEvent::Lost(loss) = last else { panic!("expected a loss, got {last:?}") };
    assert_eq!(loss.code, ErrorCode::WorkerCrashed);
    assert!(loss.message.contains("SIGKILL"), "{}", loss.message);
    assert_eq!(loss.stderr, ["scripted: crashing now"]);
    assert_eq!(handle.ready().await.unwrap(), 2, "a new worker is a new epoch");
    let (_, message, _slot) = run_message(2);
    let last = last_event(handle.run(message).await.unwrap()).await;
    assert!(matches!(last, RunEvent::Message(FromWorker::Done { .. })), "{last:?}");
}

#[tokio::test]
async fn a_cancelled_run_says_so_and_what_comes_later_is_dropped_and_counted() {
    let worker = ScriptedWorker::new([Script::good().step_ms(20).late_after_cancel()]);
    let handle = supervise(&worker, quick());
    handle.ready().await.unwrap();
    let (work, message, _slot) = run_message(500);
    let mut events = handle.run(message).await.unwrap();
    while !matches!(events.recv().await, Some(RunEvent::Message(FromWorker::Progress { .. }))) {}
    handle.cancel(work).await;
    let last = last_event(events).await;
    let RunEvent::Message(FromWorker::Failed { error, .. }) = last else { panic!("{last:?}") };
    assert_eq!(error.code, ErrorCode::ProcessingCancelled);
    let mut view = handle.watch();
    view.wait_for(|view| view.stale_messages == 1).await.unwrap();
}

#[tokio::test]
async fn garbage_on_the_channel_costs_only_the_garbage() {
    let worker = ScriptedWorker::new([Script::good().garbage_at(2)]);
    let handle = supervise(&worker, quick());
    handle.ready().await.unwrap();
    let (_, message, _slot) = run_message(4);
    let last = last_event(handle.run(message).await.unwrap()).await;
    assert!(matches!(last, RunEvent::Message(FromWorker::Done { .. })), "{last:?}");
    assert_eq!(handle.view().refused_lines, 2);
}

#[tokio::test]
async fn a_worker_without_a_sign_of_life_is_replaced() {
    let worker =
        ScriptedWorker::new([Script::good().freeze_at(2).deaf_to_sigterm(), Script::good()]);
    let handle =
        supervise(&worker, SupervisorConfig { step_limit: Duration::from_millis(200), ..quick() });
    handle.ready().await.unwrap();
    let pid = handle.view().pid.unwrap();
    let (_, message, _slot) = run_message(4);
    let last = last_event(handle.run(message).await.unwrap()).await;
    let RunEvent::Lost(loss) = last else { panic!("expected a loss, got {last:?}") };
    assert_eq!(loss.code, ErrorCode::WorkerUnresponsive);
    assert_eq!(handle.ready().await.unwrap(), 2);
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_program_that_is_no_worker_or_speaks_another_protocol_is_refused_once() {
    for (how, code) in [
        ("garbage", ErrorCode::WorkerIncompatible),
        ("wrong_version", ErrorCode::ProtocolVersionMismatch),
    ] {
        let worker = ScriptedWorker::new([Script::good().hello(how)]);
        let handle = supervise(&worker, quick());
        let error = handle.ready().await.expect_err("must be refused");
        assert_eq!(error.code, code, "{how}: {error}");
        assert_eq!(handle.view().state, WorkerState::Failed);
        assert_eq!(worker.starts(), 1, "{how}: no restart storm");
    }
}

#[tokio::test]
async fn a_worker_that_exits_at_once_is_tried_three_times_and_its_last_words_are_told() {
    let worker = ScriptedWorker::new([Script::good().hello("exit")]);
    let handle = supervise(&worker, quick());
    let error = handle.ready().await.expect_err("it never becomes ready");
    assert_eq!(error.code, ErrorCode::WorkerCrashed);
    assert!(error.message.contains("scripted: cannot go on"), "{error}");
    assert_eq!(worker.starts(), 3);
}

#[tokio::test]
async fn a_missing_program_is_one_clear_error() {
    let handle = supervise_command(vec!["/nowhere/python3".into()], quick());
    let error = handle.ready().await.expect_err("there is no such program");
    assert_eq!(error.code, ErrorCode::EnvironmentBroken);
    assert!(error.message.contains("/nowhere/python3"), "{error}");
}

#[tokio::test]
async fn a_worker_that_says_nothing_is_not_waited_for_for_ever() {
    let worker = ScriptedWorker::new([Script::good().hello("none"), Script::good()]);
    let config = SupervisorConfig { hello_limit: Duration::from_secs(2), ..quick() };
    let handle = supervise(&worker, config);
    assert_eq!(handle.ready().await.unwrap(), 1);
    assert_eq!(worker.starts(), 2);
}

#[tokio::test]
async fn a_request_that_fails_carries_the_workers_own_error() {
    let worker = ScriptedWorker::new([Script::good().load("fail")]);
    let handle = supervise(&worker, quick());
    handle.ready().await.unwrap();
    let unload =
        handle.request(Duration::from_secs(5), |id| ToWorker::Unload { id, model: "m".into() });
    assert!(matches!(unload.await, Ok(FromWorker::Unloaded { .. })));
    let load = handle.request(Duration::from_secs(5), |id| ToWorker::Load {
        id,
        work: None,
        model: atelier_protocol::worker::ModelSource { model: "m".into(), folder: "/m".into() },
        device: DeviceId::cpu(),
        numerics: atelier_protocol::worker::Numerics {
            dtype: atelier_protocol::worker::Dtype::Float32,
            memory_format: atelier_protocol::worker::MemoryFormat::Contiguous,
            threads: 1,
        },
    });
    assert_eq!(load.await.expect_err("it was told to fail").code, ErrorCode::ModelUnreadable);
}

#[tokio::test]
async fn a_worker_that_was_not_waited_for_is_still_starting() {
    let worker = ScriptedWorker::new([Script::good()]);
    let handle = supervise(&worker, quick());
    let probe = handle.request(Duration::from_secs(5), |id| ToWorker::ProbeDevices { id });
    assert_eq!(probe.await.expect_err("nobody is there").code, ErrorCode::WorkerStarting);
    let (_, message, _slot) = run_message(1);
    let error = handle.run(message).await.expect_err("nobody is there");
    assert_eq!(error.code, ErrorCode::WorkerStarting);
    assert_eq!(worker.starts(), 0, "asking starts nothing");
}

#[tokio::test]
async fn shutdown_ends_even_a_worker_that_ignores_it() {
    let worker = ScriptedWorker::new([Script::good().freeze_at(1).deaf_to_sigterm()]);
    let handle = supervise(&worker, quick());
    handle.ready().await.unwrap();
    let pid = handle.view().pid.unwrap();
    let (_, message, _slot) = run_message(4);
    let events = handle.run(message).await.unwrap();
    handle.shutdown().await;
    assert!(!is_alive(pid));
    assert!(matches!(last_event(events).await, RunEvent::Lost(_)));
    let error = handle.ready().await.expect_err("shut down for good");
    assert_eq!(error.code, ErrorCode::NodeStopping);
}
