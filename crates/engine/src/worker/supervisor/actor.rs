//! The task that owns one worker: takes commands, decides when to start it, keeps the table of what is pending.
//!
//! Never waits for the worker inside its loop: it starts things and gets their outcome back as one more event.

use super::phase::RunClock;
use super::pipes::{PipeEvent, Pipes};
use super::spare::{self, Spare};
use super::{RunEvent, SupervisorConfig};
use crate::clock::Clock;
use crate::worker::launch::{Launcher, StartProgress};
use crate::worker::oom::OomWatch;
use crate::worker::process::{Connection, Spawner};
use crate::worker::view::{WorkerState, WorkerView};
use atelier_protocol::worker::{FromWorker, ToWorker, Work};
use atelier_protocol::{ErrorBody, ErrorCode, RunId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

type Answer = oneshot::Sender<Result<FromWorker, ErrorBody>>;

/// What may be asked of the actor.
pub(super) enum Command {
    Ready {
        reply: oneshot::Sender<Result<u64, ErrorBody>>,
    },
    Request {
        build: Box<dyn FnOnce(u64) -> ToWorker + Send>,
        limit: Duration,
        reply: Answer,
    },
    Run {
        message: ToWorker,
        learned_step: Option<Duration>,
        reply: oneshot::Sender<Result<mpsc::Receiver<RunEvent>, ErrorBody>>,
    },
    Cancel {
        work: Work,
    },
    Forget {
        run: RunId,
    },
    Kill {
        code: ErrorCode,
        reason: String,
    },
    Shutdown {
        reply: oneshot::Sender<()>,
    },
}

/// Every way in which the loop can wake.
enum Wake {
    Command(Option<Command>),
    Pipe(Option<PipeEvent>),
    /// The spare said something or ended.
    Spare,
    Start(Option<StartEvent>),
    Deadline,
}

pub(super) enum StartEvent {
    Progress(StartProgress),
    Spawned(Result<Connection, ErrorBody>),
    Spare(Result<Spare, ErrorBody>),
}

pub(super) struct Pending {
    pub(super) reply: Answer,
    pub(super) deadline: Instant,
}

pub(super) struct Run {
    pub(super) open: HashSet<Work>,
    pub(super) events: mpsc::Sender<RunEvent>,
    pub(super) clock: RunClock,
}

pub(super) struct Actor {
    pub(super) config: SupervisorConfig,
    pub(super) spawner: Arc<dyn Spawner>,
    pub(super) launcher: Arc<dyn Launcher>,
    pub(super) clock: Clock,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) publish: watch::Sender<WorkerView>,
    pub(super) view: WorkerView,
    pub(super) pipes: Option<Pipes>,
    pub(super) start_in: mpsc::Sender<StartEvent>,
    pub(super) start_out: mpsc::Receiver<StartEvent>,
    pub(super) waiting: Vec<oneshot::Sender<Result<u64, ErrorBody>>>,
    pub(super) pending: HashMap<u64, Pending>,
    pub(super) runs: HashMap<RunId, Run>,
    pub(super) next_id: u64,
    pub(super) bad_lines: u32,
    /// Failures since the last work that was finished; spaces out the starts.
    pub(super) failures: u32,
    /// Limit of the current phase of a start or an end.
    pub(super) phase_deadline: Option<Instant>,
    pub(super) start_at: Option<Instant>,
    /// Why the process is being ended, when it is our doing.
    pub(super) sentence: Option<(ErrorCode, String)>,
    pub(super) stopped: Vec<oneshot::Sender<()>>,
    pub(super) stopping: bool,
    pub(super) terminated: bool,
    pub(super) spare: SpareState,
    /// When an idle worker may get company.
    pub(super) spare_at: Option<Instant>,
    pub(super) oom: OomWatch,
    /// Least memory seen after work: what growth is measured from.
    pub(super) rss_floor: Option<u64>,
    pub(super) failed_until: Option<Instant>,
}

/// The second process.
pub(super) enum SpareState {
    None,
    Raising,
    Ready(Spare),
}

impl Actor {
    pub(super) fn new(
        config: SupervisorConfig,
        spawner: Arc<dyn Spawner>,
        launcher: Arc<dyn Launcher>,
        clock: Clock,
        inbox: mpsc::Receiver<Command>,
        publish: watch::Sender<WorkerView>,
    ) -> Self {
        let (start_in, start_out) = mpsc::channel(64);
        Self {
            spawner,
            launcher,
            view: WorkerView { since: clock.stamp(), ..WorkerView::default() },
            clock,
            inbox,
            publish,
            oom: OomWatch::new(&config.vmstat),
            config,
            pipes: None,
            start_in,
            start_out,
            waiting: Vec::new(),
            pending: HashMap::new(),
            runs: HashMap::new(),
            next_id: 1,
            bad_lines: 0,
            failures: 0,
            phase_deadline: None,
            start_at: None,
            sentence: None,
            stopped: Vec::new(),
            stopping: false,
            terminated: false,
            spare: SpareState::None,
            spare_at: None,
            rss_floor: None,
            failed_until: None,
        }
    }

    pub(super) async fn run(mut self) {
        self.publish();
        loop {
            let wake = self.next().await;
            match wake {
                Wake::Command(None) => {
                    // The last handle is gone, and nobody is left to stop them.
                    self.pipes.iter().for_each(|pipes| pipes.control.kill());
                    self.drop_spare();
                    return;
                }
                Wake::Command(Some(command)) => self.on_command(command),
                Wake::Pipe(Some(PipeEvent::Line(line))) => self.on_line(line),
                Wake::Pipe(Some(PipeEvent::Exited(cause))) => self.on_exit(Some(cause)),
                Wake::Pipe(None) => self.on_exit(None),
                // A spare has nothing to say until it is needed; whatever it says, it is of no use any more.
                Wake::Spare => self.drop_spare(),
                Wake::Start(Some(event)) => self.on_start(event),
                Wake::Start(None) => {}
                Wake::Deadline => self.on_deadline(),
            }
            self.consider_idleness();
            self.publish();
        }
    }

    async fn next(&mut self) -> Wake {
        let deadline = self.nearest_deadline();
        let pipes = async {
            match &mut self.pipes {
                Some(pipes) => pipes.events.recv().await,
                None => std::future::pending().await,
            }
        };
        let spare = async {
            match &mut self.spare {
                SpareState::Ready(spare) => spare.pipes.events.recv().await,
                SpareState::None | SpareState::Raising => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = pipes => Wake::Pipe(event),
            _ = spare => Wake::Spare,
            event = self.start_out.recv() => Wake::Start(event),
            command = self.inbox.recv() => Wake::Command(command),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Wake::Deadline,
        }
    }

    fn nearest_deadline(&self) -> Option<Instant> {
        let requests = self.pending.values().map(|pending| pending.deadline);
        let runs = self.runs.values().map(|run| run.clock.deadline);
        let own = [self.phase_deadline, self.start_at, self.spare_at];
        requests.chain(runs).chain(own.into_iter().flatten()).min()
    }

    // ---- commands

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Ready { reply } => self.on_ready_wanted(reply),
            Command::Request { build, limit, reply } => {
                let id = self.next_id;
                self.next_id += 1;
                match self.send_when_ready(&build(id)) {
                    Ok(()) => {
                        let deadline = Instant::now() + limit;
                        self.pending.insert(id, Pending { reply, deadline });
                    }
                    Err(error) => drop(reply.send(Err(error))), // the asker may have left
                }
            }
            Command::Run { message, learned_step, reply } => {
                let answer = self.begin_run(&message, learned_step);
                let _ = reply.send(answer); // the asker may have left; its run is then cancelled by the closed channel
            }
            Command::Cancel { work } => {
                if self.runs.get(&work.run).is_some_and(|run| run.open.contains(&work)) {
                    let _ = self.send_when_ready(&ToWorker::Cancel { work }); // if not ready it has stopped already
                }
            }
            Command::Forget { run } => drop(self.runs.remove(&run)),
            Command::Kill { code, reason } => self.end_process(code, reason),
            Command::Shutdown { reply } => {
                self.stopping = true;
                self.stopped.push(reply);
                self.begin_shutdown();
            }
        }
    }

    fn on_ready_wanted(&mut self, reply: oneshot::Sender<Result<u64, ErrorBody>>) {
        if self.stopping {
            let stopping = ErrorBody::new(ErrorCode::NodeStopping, "the node is shutting down");
            let _ = reply.send(Err(stopping)); // the asker may have left
            return;
        }
        match self.view.state {
            WorkerState::Ready => drop(reply.send(Ok(self.view.epoch))), // the asker may have left
            WorkerState::Starting | WorkerState::Draining => self.waiting.push(reply),
            WorkerState::Failed
                if self.failed_until.is_some_and(|until| Instant::now() < until) =>
            {
                // It failed just now, again and again: no restart storm for the sake of one more asker.
                let failure = self.view.failure.clone();
                let unknown =
                    || ErrorBody::new(ErrorCode::WorkerCrashed, "the worker cannot start");
                let _ = reply.send(Err(failure.unwrap_or_else(unknown))); // the asker may have left
            }
            WorkerState::Absent | WorkerState::Lost | WorkerState::Failed => {
                self.waiting.push(reply);
                if self.start_at.is_none() {
                    self.schedule_start();
                }
            }
        }
    }

    pub(super) fn send_when_ready(&mut self, message: &ToWorker) -> Result<(), ErrorBody> {
        match (&self.pipes, self.view.state) {
            (Some(pipes), WorkerState::Ready) => {
                if pipes.send(message) {
                    return Ok(());
                }
                let reason = "the worker does not read its messages".to_owned();
                self.end_process(ErrorCode::WorkerUnresponsive, reason.clone());
                Err(ErrorBody::new(ErrorCode::WorkerUnresponsive, reason))
            }
            _ => Err(ErrorBody::new(ErrorCode::WorkerStarting, "the worker is not ready")),
        }
    }

    fn begin_run(
        &mut self,
        message: &ToWorker,
        learned_step: Option<Duration>,
    ) -> Result<mpsc::Receiver<RunEvent>, ErrorBody> {
        let ToWorker::Run { run, items, .. } = message else {
            return Err(ErrorBody::new(ErrorCode::Internal, "only a run may be run"));
        };
        let run = *run;
        let open = items.iter().map(|item| Work { run, job: item.job, attempt: item.attempt });
        let open = open.collect();
        self.send_when_ready(message)?;
        let (events, receiver) = mpsc::channel(1024);
        let clock = RunClock::start(self.config.phases, learned_step, Instant::now());
        self.runs.insert(run, Run { open, events, clock });
        Ok(receiver)
    }

    // ---- start

    /// Promotes the spare if there is one; else starts a process, after a pause that grows with every failure.
    pub(super) fn schedule_start(&mut self) {
        if let SpareState::Ready(_) = self.spare {
            self.promote_spare();
            return;
        }
        let pause = match self.failures {
            0 | 1 => Duration::ZERO,
            n => {
                let (first, longest) = self.config.back_off;
                jitter(longest.min(first * 2_u32.saturating_pow(n - 2)))
            }
        };
        if pause.is_zero() {
            self.begin_start();
        } else {
            self.start_at = Some(Instant::now() + pause);
        }
    }

    pub(super) fn begin_start(&mut self) {
        self.start_at = None;
        self.set_state(WorkerState::Starting);
        self.view.failure = None;
        let (progress_in, mut progress_out) = mpsc::channel(16);
        let preparation = self.launcher.prepare(progress_in);
        let (spawner, events) = (Arc::clone(&self.spawner), self.start_in.clone());
        tokio::spawn({
            let events = events.clone();
            async move {
                while let Some(progress) = progress_out.recv().await {
                    let _ = events.send(StartEvent::Progress(progress)).await; // the actor may be gone
                }
            }
        });
        tokio::spawn(async move {
            let spawned = match preparation.await {
                Ok(command) => spawner.spawn(command).await.map_err(|error| {
                    ErrorBody::new(ErrorCode::EnvironmentBroken, error.to_string())
                }),
                Err(error) => Err(error),
            };
            let _ = events.send(StartEvent::Spawned(spawned)).await; // dropping the connection kills the process
        });
    }

    fn on_start(&mut self, event: StartEvent) {
        match event {
            StartEvent::Progress(progress) => {
                if self.view.state == WorkerState::Starting {
                    self.view.starting = Some(progress);
                }
            }
            StartEvent::Spawned(_) if self.stopping => self.finish_stop(), // dropped, which kills it
            StartEvent::Spawned(Ok(connection)) => {
                let pipes = Pipes::attach(connection);
                self.view.pid = pipes.control.pid();
                self.view.starting = Some(StartProgress::Import);
                self.phase_deadline = Some(Instant::now() + self.config.hello_limit);
                self.bad_lines = 0;
                self.pipes = Some(pipes);
                tracing::info!(pid = self.view.pid, "worker started");
            }
            StartEvent::Spawned(Err(error)) => self.give_up(error),
            StartEvent::Spare(Ok(spare)) if !self.stopping => {
                tracing::info!(pid = spare.pipes.control.pid(), "spare worker ready");
                self.spare = SpareState::Ready(spare);
                self.view.spare = true;
                if matches!(self.view.state, WorkerState::Lost) {
                    self.start_at = None;
                    self.promote_spare(); // the worker was lost while its spare was being raised
                }
            }
            StartEvent::Spare(Ok(spare)) => spare.pipes.control.kill(),
            StartEvent::Spare(Err(error)) => {
                tracing::warn!("no spare worker: {error}");
                self.spare = SpareState::None;
            }
        }
    }

    // ---- the spare

    /// Looks whether the worker has nothing to do: then a spare may be raised, or a worker that has grown be replaced.
    fn consider_idleness(&mut self) {
        let idle = self.view.state == WorkerState::Ready
            && self.runs.is_empty()
            && self.pending.is_empty()
            && !self.stopping;
        let wanted = idle && matches!(self.spare, SpareState::None);
        match (self.config.spare_after, wanted) {
            (Some(pause), true) => {
                self.spare_at.get_or_insert_with(|| Instant::now() + pause);
            }
            _ => self.spare_at = None,
        }
        if idle && self.has_grown() {
            match self.spare {
                SpareState::Ready(_) => self.recycle(),
                SpareState::None => self.raise_spare(),
                SpareState::Raising => {}
            }
        }
    }

    pub(super) fn raise_spare(&mut self) {
        self.spare_at = None;
        self.spare = SpareState::Raising;
        let (config, events) = (self.config.clone(), self.start_in.clone());
        let (launcher, spawner) = (Arc::clone(&self.launcher), Arc::clone(&self.spawner));
        tokio::spawn(async move {
            let raised = spare::raise(config, launcher, spawner).await;
            let _ = events.send(StartEvent::Spare(raised)).await; // dropping the pipes ends the process
        });
    }

    fn has_grown(&self) -> bool {
        match (self.config.recycle_growth, self.rss_floor, self.view.rss_bytes) {
            (Some(growth), Some(floor), Some(now)) => now > floor.saturating_add(growth.0),
            _ => false,
        }
    }

    /// Puts the spare in the place of an idle worker, which is told to end.
    fn recycle(&mut self) {
        tracing::info!(pid = self.view.pid, rss_bytes = self.view.rss_bytes, "worker recycled");
        self.view.recycled += 1;
        if let Some(old) = self.pipes.take() {
            old.send(&ToWorker::Shutdown {});
            tokio::spawn(old.outlive(self.config.stop_grace));
        }
        self.promote_spare();
    }

    pub(super) fn promote_spare(&mut self) {
        let SpareState::Ready(spare) = std::mem::replace(&mut self.spare, SpareState::None) else {
            return;
        };
        self.view.spare = false;
        self.view.pid = spare.pipes.control.pid();
        self.view.versions = spare.versions;
        self.pipes = Some(spare.pipes);
        self.bad_lines = 0;
        self.become_ready(spare.backends);
    }

    pub(super) fn become_ready(&mut self, backends: Vec<String>) {
        self.phase_deadline = None;
        self.start_at = None;
        self.rss_floor = None;
        self.view.backends = backends;
        self.view.starting = None;
        self.view.failure = None;
        self.view.rss_bytes = None;
        self.view.device_bytes = None;
        self.view.epoch += 1;
        self.oom.killed_since(); // what was killed before this worker is no evidence about it
        self.set_state(WorkerState::Ready);
        tracing::info!(pid = self.view.pid, epoch = self.view.epoch, "worker ready");
        for reply in self.waiting.drain(..) {
            let _ = reply.send(Ok(self.view.epoch)); // the asker may have left
        }
    }

    pub(super) fn drop_spare(&mut self) {
        if let SpareState::Ready(spare) = std::mem::replace(&mut self.spare, SpareState::None) {
            spare.pipes.control.kill();
        }
        self.view.spare = false;
    }

    pub(super) fn set_state(&mut self, state: WorkerState) {
        self.view.state = state;
        self.view.since = self.clock.stamp();
    }

    fn publish(&self) {
        self.publish.send_replace(self.view.clone());
    }
}

/// Up to a quarter more or less, so that workers that fell together do not rise together.
fn jitter(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() % 512;
    pause * (768 + u32::try_from(random).unwrap_or(0)) / 1024
}
