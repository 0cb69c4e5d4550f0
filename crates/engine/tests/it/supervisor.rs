//! The supervisor over real processes that misbehave on command.

use atelier_engine::clock::Clock;
use atelier_engine::worker::{
    Launcher, PhaseLimits, Preparation, ProcessSpawner, RunEvent, SlotFile, StartProgress,
    SupervisorConfig, WorkerCommand, WorkerHandle, WorkerState,
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

/// Little patience with every phase.
fn fast_phases() -> PhaseLimits {
    let short = Duration::from_millis(200);
    PhaseLimits { encode: short, unlearned_step: short, decode: short, ..PhaseLimits::default() }
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
    let last = last_event(handle.run(message, None).await.unwrap()).await;
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
    let last = last_event(handle.run(message, None).await.unwrap()).await;
    let RunEvent::Lost(loss) = last else { panic!("expected a loss, got {last:?}") };
    assert_eq!(loss.code, ErrorCode::WorkerCrashed);
    assert!(loss.message.contains("SIGKILL"), "{}", loss.message);
    assert_eq!(loss.stderr, ["scripted: crashing now"]);
    assert_eq!(handle.ready().await.unwrap(), 2, "a new worker is a new epoch");
    let (_, message, _slot) = run_message(2);
    let last = last_event(handle.run(message, None).await.unwrap()).await;
    assert!(matches!(last, RunEvent::Message(FromWorker::Done { .. })), "{last:?}");
}

#[tokio::test]
async fn a_cancelled_run_says_so_and_what_comes_later_is_dropped_and_counted() {
    let worker = ScriptedWorker::new([Script::good().step_ms(20).late_after_cancel()]);
    let handle = supervise(&worker, quick());
    handle.ready().await.unwrap();
    let (work, message, _slot) = run_message(500);
    let mut events = handle.run(message, None).await.unwrap();
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
    let last = last_event(handle.run(message, None).await.unwrap()).await;
    assert!(matches!(last, RunEvent::Message(FromWorker::Done { .. })), "{last:?}");
    assert_eq!(handle.view().refused_lines, 2);
}

#[tokio::test]
async fn a_worker_without_a_sign_of_life_is_replaced() {
    let worker =
        ScriptedWorker::new([Script::good().freeze_at(2).deaf_to_sigterm(), Script::good()]);
    let handle = supervise(&worker, SupervisorConfig { phases: fast_phases(), ..quick() });
    handle.ready().await.unwrap();
    let pid = handle.view().pid.unwrap();
    let (_, message, _slot) = run_message(4);
    let last = last_event(handle.run(message, None).await.unwrap()).await;
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
    let error = handle.run(message, None).await.expect_err("nobody is there");
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
    let events = handle.run(message, None).await.unwrap();
    handle.shutdown().await;
    assert!(!is_alive(pid));
    assert!(matches!(last_event(events).await, RunEvent::Lost(_)));
    let error = handle.ready().await.expect_err("shut down for good");
    assert_eq!(error.code, ErrorCode::NodeStopping);
}

#[tokio::test]
async fn a_declared_compilation_may_be_silent_for_longer_than_a_step() {
    let worker = ScriptedWorker::new([Script::good().compile_ms(900)]);
    let handle = supervise(&worker, SupervisorConfig { phases: fast_phases(), ..quick() });
    handle.ready().await.unwrap();
    let (_, message, _slot) = run_message(2);
    let last = last_event(handle.run(message, None).await.unwrap()).await;
    assert!(matches!(last, RunEvent::Message(FromWorker::Done { .. })), "{last:?}");
}

#[tokio::test]
async fn a_hung_worker_leaves_its_stack_its_phase_and_its_step() {
    let worker = ScriptedWorker::new([Script::good().freeze_at(3)]);
    let handle = supervise(&worker, SupervisorConfig { phases: fast_phases(), ..quick() });
    handle.ready().await.unwrap();
    let (_, message, _slot) = run_message(5);
    let last = last_event(handle.run(message, None).await.unwrap()).await;
    let RunEvent::Lost(loss) = last else { panic!("expected a loss, got {last:?}") };
    let body = loss.body();
    let detail = |field: &str| {
        let found = body.details.iter().find(|detail| detail.field == field);
        found.map(|detail| detail.message.clone()).unwrap_or_default()
    };
    assert_eq!((detail("phase"), detail("step")), ("denoise".to_owned(), "2".to_owned()));
    assert_eq!(detail("blame"), "worker");
    assert!(detail("stack").contains("in run"), "the dump names the frame: {body:?}");
    assert!(body.message.contains("no sign of life"), "{body}");
}

#[tokio::test]
async fn a_spare_takes_the_place_of_a_lost_worker_without_a_start() {
    let slow = || Script::good().import_ms(300);
    let worker = ScriptedWorker::new([slow().crash_at(1), slow(), slow()]);
    let config = SupervisorConfig { spare_after: Some(Duration::from_millis(1)), ..quick() };
    let handle = supervise(&worker, config);
    handle.ready().await.unwrap();
    let mut view = handle.watch();
    let spare_pid = |view: &atelier_engine::worker::WorkerView| view.spare;
    view.wait_for(spare_pid).await.unwrap();
    assert_eq!(worker.starts(), 2);
    let (_, message, _slot) = run_message(2);
    let last = last_event(handle.run(message, None).await.unwrap()).await;
    assert!(matches!(last, RunEvent::Lost(_)));
    assert_eq!(handle.ready().await.unwrap(), 2);
    assert_eq!(worker.starts(), 2, "the spare was promoted, nothing was started");
    let (_, message, _slot) = run_message(2);
    let last = last_event(handle.run(message, None).await.unwrap()).await;
    assert!(matches!(last, RunEvent::Message(FromWorker::Done { .. })), "{last:?}");
    view.wait_for(spare_pid).await.unwrap();
    handle.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_has_grown_is_replaced_while_it_is_idle() {
    let worker = ScriptedWorker::new([Script::good().grows_by_mib(50), Script::good()]);
    let growth = Some(atelier_protocol::Bytes::mib(120));
    let handle = supervise(&worker, SupervisorConfig { recycle_growth: growth, ..quick() });
    handle.ready().await.unwrap();
    let first = handle.view().pid.unwrap();
    for _ in 0..4 {
        let (_, message, _slot) = run_message(1);
        let last = last_event(handle.run(message, None).await.unwrap()).await;
        assert!(matches!(last, RunEvent::Message(FromWorker::Done { .. })), "{last:?}");
    }
    let mut view = handle.watch();
    let view = view.wait_for(|view| view.recycled == 1).await.unwrap().clone();
    assert_eq!((view.state, view.epoch, view.losses), (WorkerState::Ready, 2, 0));
    assert_ne!(view.pid, Some(first));
}

#[tokio::test]
async fn a_kill_by_the_systems_memory_killer_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let vmstat = folder.path().join("vmstat");
    std::fs::write(&vmstat, "oom_kill 1\n").unwrap();
    let worker = ScriptedWorker::new([Script::good().freeze_at(2)]);
    let handle = supervise(&worker, SupervisorConfig { vmstat: vmstat.clone(), ..quick() });
    handle.ready().await.unwrap();
    let (_, message, _slot) = run_message(4);
    let mut events = handle.run(message, None).await.unwrap();
    while !matches!(events.recv().await, Some(RunEvent::Message(FromWorker::Progress { .. }))) {}
    std::fs::write(&vmstat, "oom_kill 2\n").unwrap();
    let pid = handle.view().pid.unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    let RunEvent::Lost(loss) = last_event(events).await else { panic!("expected a loss") };
    assert_eq!(loss.code, ErrorCode::MemoryExhausted);
    assert!(loss.message.contains("ran out of memory"), "{}", loss.message);
}

#[tokio::test]
async fn a_worker_that_cannot_start_is_not_started_again_for_every_asker() {
    let worker = ScriptedWorker::new([Script::good().hello("exit")]);
    let handle = supervise(&worker, quick());
    for _ in 0..5 {
        let error = handle.ready().await.expect_err("it never becomes ready");
        assert!(error.message.contains("scripted: cannot go on"), "{error}");
    }
    assert_eq!(worker.starts(), 3);
}
