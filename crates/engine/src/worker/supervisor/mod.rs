//! The grip that others have on one worker. Everything that happens is decided in [`actor`]: what it hears in [`hear`],
//! how a worker ends in [`ends`].

mod actor;
mod ends;
mod hear;
mod phase;
mod pipes;
mod spare;

pub use phase::PhaseLimits;

use super::Loss;
use super::launch::Launcher;
use super::process::Spawner;
use super::view::WorkerView;
use crate::clock::Clock;
use actor::{Actor, Command};
use atelier_protocol::worker::{
    Budget, FromWorker, Limits, MAX_BAD_LINES, MAX_LINE_BYTES, PROTOCOL, ToWorker, Work,
};
use atelier_protocol::{Bytes, ErrorBody, ErrorCode, RunId};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Limits on every wait for a worker.
#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    /// CPU threads that the worker may use.
    pub threads: u32,
    /// From the start of the process to `hello`.
    pub hello_limit: Duration,
    /// From `welcome` to `ready`: the imports.
    pub import_limit: Duration,
    /// Between two signs of life of a run.
    pub phases: PhaseLimits,
    /// Between the steps of ending a worker: `shutdown`, SIGTERM, SIGKILL.
    pub stop_grace: Duration,
    /// Starts in a row that may fail before those who wait are told.
    pub start_attempts: u32,
    /// First and longest pause before a start that follows a failure.
    pub back_off: (Duration, Duration),
    /// After starts have failed, waiters are told the same reason for this long before anything is started again.
    pub failed_pause: Duration,
    /// Start again after a loss without being asked.
    pub keep_warm: bool,
    /// Raise a spare once the worker has been idle for this long; none: no spare.
    pub spare_after: Option<Duration>,
    /// An idle worker whose memory has grown by this much since its first work is replaced; none: never.
    pub recycle_growth: Option<Bytes>,
    /// Where the kernel counts what its out-of-memory killer did.
    pub vmstat: PathBuf,
}

impl Default for SupervisorConfig {
    fn default() -> Self {
        Self {
            threads: 1,
            hello_limit: Duration::from_secs(30),
            import_limit: Duration::from_secs(120),
            phases: PhaseLimits::default(),
            stop_grace: Duration::from_secs(5),
            start_attempts: 3,
            back_off: (Duration::from_millis(250), Duration::from_secs(30)),
            failed_pause: Duration::from_secs(10),
            keep_warm: false,
            spare_after: None,
            recycle_growth: None,
            vmstat: PathBuf::from("/proc/vmstat"),
        }
    }
}

/// The answer to every `hello`. A worker of another version is welcomed too: it says so in a sentence and ends with its own
/// exit status.
fn welcome(threads: u32) -> ToWorker {
    ToWorker::Welcome {
        protocol: PROTOCOL,
        limits: Limits { line_bytes: MAX_LINE_BYTES as u64, bad_lines: MAX_BAD_LINES },
        budget: Budget { threads },
    }
}

/// What reaches the owner of a run.
#[derive(Clone, PartialEq, Debug)]
pub enum RunEvent {
    /// A message about the run's work; the fence was checked.
    Message(FromWorker),
    /// The worker is gone and the run with it. The last event.
    Lost(Loss),
}

/// One worker. Cheap to clone; the worker ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    inbox: mpsc::Sender<Command>,
    view: watch::Receiver<WorkerView>,
}

impl WorkerHandle {
    /// Starts the actor; the process itself starts when it is first needed.
    #[must_use]
    pub fn start(
        config: SupervisorConfig,
        spawner: Arc<dyn Spawner>,
        launcher: Arc<dyn Launcher>,
        clock: Clock,
    ) -> Self {
        let (inbox, commands) = mpsc::channel(64);
        let (publish, view) = watch::channel(WorkerView::default());
        tokio::spawn(Actor::new(config, spawner, launcher, clock, commands, publish).run());
        Self { inbox, view }
    }

    /// The latest state. Never waits.
    #[must_use]
    pub fn view(&self) -> WorkerView {
        self.view.borrow().clone()
    }

    /// A receiver that wakes at every change of state.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<WorkerView> {
        self.view.clone()
    }

    /// Starts the worker if there is none and waits until it is ready. Answers with the epoch.
    pub async fn ready(&self) -> Result<u64, ErrorBody> {
        self.ask(|reply| Command::Ready { reply }).await?
    }

    /// Sends a request and waits for its answer. `build` is given the id to put in.
    pub async fn request(
        &self,
        limit: Duration,
        build: impl FnOnce(u64) -> ToWorker + Send + 'static,
    ) -> Result<FromWorker, ErrorBody> {
        let build = Box::new(build);
        self.ask(|reply| Command::Request { build, limit, reply }).await?
    }

    /// Sends a `run` and returns its events. The channel closes after every item was done or failed, or with `Lost`.
    /// `learned_step` is what a denoise step of this model and size takes here, where that is known.
    pub async fn run(
        &self,
        message: ToWorker,
        learned_step: Option<Duration>,
    ) -> Result<mpsc::Receiver<RunEvent>, ErrorBody> {
        self.ask(|reply| Command::Run { message, learned_step, reply }).await?
    }

    /// Asks the worker to stop this work at its next step.
    pub async fn cancel(&self, work: Work) {
        let _ = self.inbox.send(Command::Cancel { work }).await; // a worker that is gone has stopped
    }

    /// Ends the process at once; whoever waits on it is told this reason.
    pub async fn kill(&self, code: ErrorCode, reason: impl Into<String>) {
        let reason = reason.into();
        let _ = self.inbox.send(Command::Kill { code, reason }).await; // gone is what was asked for
    }

    /// Stops waiting for a run: whatever it still sends is stale.
    pub async fn forget(&self, run: RunId) {
        let _ = self.inbox.send(Command::Forget { run }).await; // gone is what was asked for
    }

    /// Ends the worker in order and for good. Returns when the process is reaped.
    pub async fn shutdown(&self) {
        let _ = self.ask(|reply| Command::Shutdown { reply }).await; // an actor that is gone has no process
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, ErrorBody> {
        let stopping = || ErrorBody::new(ErrorCode::NodeStopping, "the node is shutting down");
        let (reply, answer) = oneshot::channel();
        self.inbox.send(command(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}
