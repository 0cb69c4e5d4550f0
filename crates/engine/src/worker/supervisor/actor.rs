//! The task that owns one worker: decides when to start and end it, matches answers to requests, fences work.
//!
//! Never waits for the worker inside its loop: it starts things and gets their outcome back as one more event.

use super::pipes::{PipeEvent, Pipes};
use super::{RunEvent, SupervisorConfig};
use crate::clock::Clock;
use crate::worker::launch::{Launcher, StartProgress};
use crate::worker::process::{Connection, Spawner};
use crate::worker::view::{WorkerState, WorkerView};
use crate::worker::{Decoded, ExitCause, Loss};
use atelier_protocol::worker::{
    Budget, EXIT_VERSION_MISMATCH, FromWorker, Limits, MAX_BAD_LINES, MAX_LINE_BYTES, PROTOCOL,
    ToWorker, Work,
};
use atelier_protocol::{ErrorBody, ErrorCode, RunId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

type Answer = oneshot::Sender<Result<FromWorker, ErrorBody>>;

/// What may be asked of the actor.
pub(super) enum Command {
    Ready { reply: oneshot::Sender<Result<u64, ErrorBody>> },
    Request { build: Box<dyn FnOnce(u64) -> ToWorker + Send>, limit: Duration, reply: Answer },
    Run { message: ToWorker, reply: oneshot::Sender<Result<mpsc::Receiver<RunEvent>, ErrorBody>> },
    Cancel { work: Work },
    Forget { run: RunId },
    Kill { code: ErrorCode, reason: String },
    Shutdown { reply: oneshot::Sender<()> },
}

/// Every way in which the loop can wake.
enum Wake {
    Command(Option<Command>),
    Pipe(Option<PipeEvent>),
    Start(Option<StartEvent>),
    Deadline,
}

enum StartEvent {
    Progress(StartProgress),
    Spawned(Result<Connection, ErrorBody>),
}

struct Pending {
    reply: Answer,
    deadline: Instant,
}

struct Run {
    open: HashSet<Work>,
    events: mpsc::Sender<RunEvent>,
    deadline: Instant,
}

pub(super) struct Actor {
    config: SupervisorConfig,
    spawner: Arc<dyn Spawner>,
    launcher: Arc<dyn Launcher>,
    clock: Clock,
    inbox: mpsc::Receiver<Command>,
    publish: watch::Sender<WorkerView>,
    view: WorkerView,
    pipes: Option<Pipes>,
    start_in: mpsc::Sender<StartEvent>,
    start_out: mpsc::Receiver<StartEvent>,
    waiting: Vec<oneshot::Sender<Result<u64, ErrorBody>>>,
    pending: HashMap<u64, Pending>,
    runs: HashMap<RunId, Run>,
    next_id: u64,
    bad_lines: u32,
    /// Failures since the last work that was finished; spaces out the starts.
    failures: u32,
    /// Limit of the current phase of a start or an end.
    phase_deadline: Option<Instant>,
    start_at: Option<Instant>,
    /// Why the process is being ended, when it is our doing.
    sentence: Option<(ErrorCode, String)>,
    stopped: Vec<oneshot::Sender<()>>,
    stopping: bool,
    terminated: bool,
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
            config,
            spawner,
            launcher,
            view: WorkerView { since: clock.stamp(), ..WorkerView::default() },
            clock,
            inbox,
            publish,
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
        }
    }

    pub(super) async fn run(mut self) {
        self.publish();
        loop {
            let wake = self.next().await;
            match wake {
                Wake::Command(None) => {
                    if let Some(pipes) = &self.pipes {
                        pipes.control.kill(); // the last handle is gone, and nobody is left to stop it
                    }
                    return;
                }
                Wake::Command(Some(command)) => self.on_command(command),
                Wake::Pipe(Some(PipeEvent::Line(line))) => self.on_line(line),
                Wake::Pipe(Some(PipeEvent::Exited(cause))) => self.on_exit(Some(cause)),
                Wake::Pipe(None) => self.on_exit(None),
                Wake::Start(Some(event)) => self.on_start(event),
                Wake::Start(None) => {}
                Wake::Deadline => self.on_deadline(),
            }
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
        tokio::select! {
            biased;
            event = pipes => Wake::Pipe(event),
            event = self.start_out.recv() => Wake::Start(event),
            command = self.inbox.recv() => Wake::Command(command),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Wake::Deadline,
        }
    }

    fn nearest_deadline(&self) -> Option<Instant> {
        let requests = self.pending.values().map(|pending| pending.deadline);
        let runs = self.runs.values().map(|run| run.deadline);
        requests.chain(runs).chain(self.phase_deadline).chain(self.start_at).min()
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
            Command::Run { message, reply } => {
                let answer = self.begin_run(&message);
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
            WorkerState::Absent | WorkerState::Lost | WorkerState::Failed => {
                self.waiting.push(reply);
                if self.start_at.is_none() {
                    self.schedule_start();
                }
            }
        }
    }

    fn send_when_ready(&mut self, message: &ToWorker) -> Result<(), ErrorBody> {
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

    fn begin_run(&mut self, message: &ToWorker) -> Result<mpsc::Receiver<RunEvent>, ErrorBody> {
        let ToWorker::Run { run, items, .. } = message else {
            return Err(ErrorBody::new(ErrorCode::Internal, "only a run may be run"));
        };
        let run = *run;
        let open = items.iter().map(|item| Work { run, job: item.job, attempt: item.attempt });
        let open = open.collect();
        self.send_when_ready(message)?;
        let (events, receiver) = mpsc::channel(1024);
        let deadline = Instant::now() + self.config.step_limit;
        self.runs.insert(run, Run { open, events, deadline });
        Ok(receiver)
    }

    // ---- start

    fn schedule_start(&mut self) {
        let pause = match self.failures {
            0 | 1 => Duration::ZERO,
            n => self.config.back_off.1.min(self.config.back_off.0 * 2_u32.saturating_pow(n - 2)),
        };
        if pause.is_zero() {
            self.begin_start();
        } else {
            self.start_at = Some(Instant::now() + pause);
        }
    }

    fn begin_start(&mut self) {
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
        }
    }

    // ---- lines

    fn on_line(&mut self, line: Decoded) {
        match line {
            Decoded::Refused(reason) => {
                self.view.refused_lines += 1;
                self.bad_lines += 1;
                tracing::warn!(pid = self.view.pid, "refused a worker's line: {reason}");
                if self.view.state == WorkerState::Starting && self.view.versions.is_empty() {
                    let reason = format!("the program is no Atelier worker: {reason}");
                    self.end_process(ErrorCode::WorkerIncompatible, reason);
                } else if self.bad_lines >= MAX_BAD_LINES {
                    let reason = format!("the worker sent {MAX_BAD_LINES} bad lines in a row");
                    self.end_process(ErrorCode::ProtocolViolation, reason);
                }
            }
            Decoded::Message(message) => {
                self.bad_lines = 0;
                self.on_message(*message);
            }
        }
    }

    fn on_message(&mut self, message: FromWorker) {
        match message {
            FromWorker::Hello { protocol, build, python, pid: _, schema_hash: _ } => {
                self.on_hello(protocol, build, python);
            }
            FromWorker::Ready { versions, backends, max_inflight: _ } => {
                self.on_ready(versions, backends);
            }
            FromWorker::Devices { re, .. }
            | FromWorker::Loaded { re, .. }
            | FromWorker::Unloaded { re, .. }
            | FromWorker::Measured { re, .. } => self.on_answer(re, Ok(message)),
            FromWorker::Failed { re: Some(re), work: None, ref error, .. } => {
                let body = ErrorBody::new(error.code, error.message.clone());
                let body = body.with_details(error.details.clone());
                self.on_answer(re, Err(body));
            }
            FromWorker::Started { work } => self.on_work(work, false, message),
            FromWorker::Progress { work, .. } => self.on_work(work, false, message),
            FromWorker::Image { work, .. } => self.on_work(work, false, message),
            FromWorker::Done { work, .. } => {
                self.failures = 0;
                self.on_work(work, true, message);
            }
            FromWorker::Failed { re: None, work: Some(work), .. } => {
                self.on_work(work, true, message);
            }
            FromWorker::Failed { .. } => {
                self.view.refused_lines += 1;
                tracing::warn!("a `failed` names both a request and work, or neither");
            }
            FromWorker::Usage { rss_bytes, device_bytes } => {
                self.view.rss_bytes = Some(rss_bytes);
                self.view.device_bytes = device_bytes;
            }
            FromWorker::Bye {} => {}
        }
    }

    fn on_hello(&mut self, protocol: u32, build: String, python: String) {
        if self.view.state != WorkerState::Starting {
            self.view.stale_messages += 1;
            return;
        }
        self.view.versions = [("worker".to_owned(), build), ("python".to_owned(), python)].into();
        self.phase_deadline = Some(Instant::now() + self.config.import_limit);
        let welcome = ToWorker::Welcome {
            protocol: PROTOCOL,
            limits: Limits { line_bytes: MAX_LINE_BYTES as u64, bad_lines: MAX_BAD_LINES },
            budget: Budget { threads: self.config.threads },
        };
        // A worker of another version is welcomed too: it says so in a sentence and ends with its own exit status.
        let heard = self.pipes.as_ref().is_some_and(|pipes| pipes.send(&welcome));
        if protocol != PROTOCOL || !heard {
            let reason = format!("the worker speaks protocol {protocol}, this node {PROTOCOL}");
            self.end_process(ErrorCode::ProtocolVersionMismatch, reason);
        }
    }

    fn on_ready(
        &mut self,
        versions: std::collections::BTreeMap<String, String>,
        backends: Vec<String>,
    ) {
        if self.view.state != WorkerState::Starting || self.sentence.is_some() {
            self.view.stale_messages += 1;
            return;
        }
        self.phase_deadline = None;
        self.view.versions.extend(versions);
        self.view.backends = backends;
        self.view.starting = None;
        self.view.epoch += 1;
        self.set_state(WorkerState::Ready);
        tracing::info!(pid = self.view.pid, epoch = self.view.epoch, "worker ready");
        for reply in self.waiting.drain(..) {
            let _ = reply.send(Ok(self.view.epoch)); // the asker may have left
        }
    }

    fn on_answer(&mut self, re: u64, answer: Result<FromWorker, ErrorBody>) {
        match self.pending.remove(&re) {
            Some(pending) => drop(pending.reply.send(answer)), // the asker may have left
            None => self.view.stale_messages += 1,
        }
    }

    fn on_work(&mut self, work: Work, last: bool, message: FromWorker) {
        let step_limit = self.config.step_limit;
        let Some(run) = self.runs.get_mut(&work.run).filter(|run| run.open.contains(&work)) else {
            self.view.stale_messages += 1;
            return;
        };
        run.deadline = Instant::now() + step_limit;
        if last {
            run.open.remove(&work);
        }
        let droppable = matches!(message, FromWorker::Progress { .. });
        let sent = run.events.try_send(RunEvent::Message(message));
        if run.open.is_empty() {
            self.runs.remove(&work.run);
        }
        match sent {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {} // the run's owner may have left
            Err(mpsc::error::TrySendError::Full(_)) if droppable => self.view.stale_messages += 1,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let reason = "the worker sends faster than a run can have anything to say";
                self.end_process(ErrorCode::ProtocolViolation, reason.to_owned());
            }
        }
    }

    // ---- ends

    fn on_deadline(&mut self) {
        let now = Instant::now();
        if self.start_at.is_some_and(|at| at <= now) {
            self.begin_start();
        }
        if self.phase_deadline.is_some_and(|at| at <= now) {
            self.phase_deadline = None;
            match self.view.state {
                WorkerState::Draining => self.press_shutdown(),
                _ => {
                    let reason = "the worker did not become ready in time".to_owned();
                    self.end_process(ErrorCode::WorkerUnresponsive, reason);
                }
            }
        }
        let late_request = self.pending.values().any(|pending| pending.deadline <= now);
        let late_run = self.runs.values().any(|run| run.deadline <= now);
        if late_request || late_run {
            let reason = format!(
                "the worker gave no sign of life for {} s",
                if late_run { self.config.step_limit.as_secs() } else { 0 }
            );
            let reason = if late_run { reason } else { "the worker did not answer in time".into() };
            // Give every waiter a deadline that does not fire again while the process is being ended.
            self.pending.values_mut().for_each(|p| p.deadline = now + self.config.stop_grace * 4);
            self.runs.values_mut().for_each(|r| r.deadline = now + self.config.stop_grace * 4);
            if let Some(pipes) = &self.pipes {
                pipes.control.dump_stacks();
            }
            self.sentence.get_or_insert((ErrorCode::WorkerUnresponsive, reason));
            self.view.state = WorkerState::Draining;
            self.phase_deadline = Some(now + Duration::from_millis(300)); // time for the dump to be written
        }
    }

    /// Ends the process at once and remembers why.
    fn end_process(&mut self, code: ErrorCode, reason: String) {
        if let Some(pipes) = &self.pipes {
            self.sentence.get_or_insert((code, reason));
            pipes.control.kill();
        }
    }

    fn begin_shutdown(&mut self) {
        self.start_at = None;
        match self.view.state {
            WorkerState::Ready => {
                let _ = self.send_when_ready(&ToWorker::Shutdown {}); // a deaf one is ended by the next steps
                self.set_state(WorkerState::Draining);
                self.phase_deadline = Some(Instant::now() + self.config.stop_grace);
            }
            WorkerState::Starting if self.pipes.is_some() => {
                self.end_process(ErrorCode::NodeStopping, "the node is shutting down".to_owned());
            }
            WorkerState::Starting | WorkerState::Draining => {}
            WorkerState::Absent | WorkerState::Lost | WorkerState::Failed => self.finish_stop(),
        }
    }

    /// The next harder way to end a worker that should have ended by now.
    fn press_shutdown(&mut self) {
        let Some(pipes) = &self.pipes else { return };
        if self.terminated {
            pipes.control.kill();
        } else {
            self.terminated = true;
            pipes.control.terminate();
            self.phase_deadline = Some(Instant::now() + self.config.stop_grace);
        }
    }

    fn on_exit(&mut self, exit: Option<ExitCause>) {
        let Some(pipes) = self.pipes.take() else { return };
        let pid = self.view.pid.take();
        let was_ready = !matches!(self.view.state, WorkerState::Starting);
        let orderly = self.stopping && self.sentence.is_none();
        let loss = self.describe_loss(pid, exit, pipes.stderr.last(40));
        self.phase_deadline = None;
        self.terminated = false;
        self.view.starting = None;
        self.view.versions.clear();
        self.view.rss_bytes = None;
        self.view.device_bytes = None;
        self.fail_everyone(&loss);
        if orderly || self.stopping {
            self.finish_stop();
            return;
        }
        self.view.losses += 1;
        self.failures += 1;
        tracing::warn!(pid, code = %loss.code, "worker lost: {}", loss.message);
        let hopeless =
            matches!(loss.code, ErrorCode::WorkerIncompatible | ErrorCode::ProtocolVersionMismatch);
        if hopeless || (!was_ready && self.failures >= self.config.start_attempts) {
            self.give_up(loss.body());
            return;
        }
        self.view.failure = Some(loss.body());
        self.set_state(WorkerState::Lost);
        if self.config.keep_warm || !self.waiting.is_empty() {
            self.schedule_start();
        }
    }

    fn describe_loss(
        &mut self,
        pid: Option<u32>,
        exit: Option<ExitCause>,
        stderr: Vec<String>,
    ) -> Loss {
        let ended =
            exit.map_or("closed its pipes".to_owned(), |cause| format!("ended with {cause}"));
        let name = pid.map_or("the worker".to_owned(), |pid| format!("the worker (pid {pid})"));
        let starting = matches!(self.view.state, WorkerState::Starting);
        let (code, message) = match (self.sentence.take(), exit) {
            (Some((code, reason)), _) => (code, reason),
            (None, Some(ExitCause::Code(EXIT_VERSION_MISMATCH))) => (
                ErrorCode::ProtocolVersionMismatch,
                format!("{name} refused this node's protocol {PROTOCOL}"),
            ),
            (None, _) if starting => {
                let last = stderr.last().map_or(String::new(), |line| format!(": {line}"));
                (ErrorCode::WorkerCrashed, format!("{name} {ended} before it was ready{last}"))
            }
            (None, _) => (ErrorCode::WorkerCrashed, format!("{name} {ended}")),
        };
        Loss { code, message, pid, exit, stderr }
    }

    fn fail_everyone(&mut self, loss: &Loss) {
        for (_, pending) in self.pending.drain() {
            let _ = pending.reply.send(Err(loss.body())); // the asker may have left
        }
        for (_, run) in self.runs.drain() {
            let events = run.events;
            let lost = RunEvent::Lost(loss.clone());
            // The channel may be full of progress; a loss must arrive, so it is handed over from a task of its own.
            if let Err(mpsc::error::TrySendError::Full(lost)) = events.try_send(lost) {
                tokio::spawn(async move { events.send(lost).await });
            }
        }
    }

    fn give_up(&mut self, error: ErrorBody) {
        tracing::error!(code = %error.code, "the worker cannot be started: {}", error.message);
        for reply in self.waiting.drain(..) {
            let _ = reply.send(Err(error.clone())); // the asker may have left
        }
        self.view.starting = None;
        self.view.failure = Some(error);
        self.set_state(WorkerState::Failed);
    }

    fn finish_stop(&mut self) {
        self.set_state(WorkerState::Absent);
        let stopping = ErrorBody::new(ErrorCode::NodeStopping, "the node is shutting down");
        for reply in self.waiting.drain(..) {
            let _ = reply.send(Err(stopping.clone())); // the asker may have left
        }
        for reply in self.stopped.drain(..) {
            let _ = reply.send(()); // the asker may have left
        }
    }

    fn set_state(&mut self, state: WorkerState) {
        self.view.state = state;
        self.view.since = self.clock.stamp();
    }

    fn publish(&self) {
        self.publish.send_replace(self.view.clone());
    }
}
