//! How a worker ends: silence, shutdown, death. Whoever waits on it is told at once, with the evidence.

use super::RunEvent;
use super::actor::Actor;
use crate::worker::evidence::{Blame, ExitCause, Loss};
use crate::worker::view::WorkerState;
use atelier_protocol::worker::{EXIT_VERSION_MISMATCH, PROTOCOL, ToWorker};
use atelier_protocol::{ErrorBody, ErrorCode};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Time for a stack dump to be written before anything harder is done.
const DUMP_TIME: Duration = Duration::from_millis(300);
const SIGKILL: i32 = 9;

impl Actor {
    pub(super) fn on_deadline(&mut self) {
        let now = Instant::now();
        if self.start_at.is_some_and(|at| at <= now) {
            self.begin_start();
        }
        if self.spare_at.is_some_and(|at| at <= now) {
            self.raise_spare();
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
        if let Some(reason) = self.silence(now) {
            self.climb_the_ladder(reason, now);
        }
    }

    /// Why somebody has waited for too long, if anybody has.
    fn silence(&self, now: Instant) -> Option<String> {
        let run = self.runs.values().find(|run| run.clock.deadline <= now).map(|run| {
            let (phase, silence) = (run.clock.phase, run.clock.silence_s());
            format!("the worker gave no sign of life for {silence:.1} s while in {phase}")
        });
        let late = self.pending.values().any(|pending| pending.deadline <= now);
        run.or_else(|| late.then(|| "the worker did not answer a request in time".to_owned()))
    }

    /// The ladder for a hang: stack dump, SIGTERM, SIGKILL. The first rung; `press_shutdown` climbs the others.
    fn climb_the_ladder(&mut self, reason: String, now: Instant) {
        tracing::warn!(pid = self.view.pid, "{reason}; asking for a stack dump, then ending it");
        // Nobody's deadline is to fire again while the process is being ended.
        let beyond = now + self.config.stop_grace * 4 + DUMP_TIME;
        self.pending.values_mut().for_each(|pending| pending.deadline = beyond);
        self.runs.values_mut().for_each(|run| run.clock.deadline = beyond);
        if let Some(pipes) = &self.pipes {
            pipes.control.dump_stacks();
        }
        self.sentence.get_or_insert((ErrorCode::WorkerUnresponsive, reason));
        self.set_state(WorkerState::Draining);
        self.phase_deadline = Some(now + DUMP_TIME);
    }

    /// Ends the process at once and remembers why.
    pub(super) fn end_process(&mut self, code: ErrorCode, reason: String) {
        if let Some(pipes) = &self.pipes {
            self.sentence.get_or_insert((code, reason));
            pipes.control.kill();
        }
    }

    pub(super) fn begin_shutdown(&mut self) {
        self.start_at = None;
        self.drop_spare();
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

    pub(super) fn on_exit(&mut self, exit: Option<ExitCause>) {
        let Some(pipes) = self.pipes.take() else { return };
        let pid = self.view.pid.take();
        let was_ready = !matches!(self.view.state, WorkerState::Starting);
        let loss = self.describe_loss(pid, exit, pipes.stderr.last(80));
        self.phase_deadline = None;
        self.terminated = false;
        self.view.starting = None;
        self.view.versions.clear();
        self.view.rss_bytes = None;
        self.view.device_bytes = None;
        self.fail_everyone(&loss);
        if self.stopping {
            self.finish_stop();
            return;
        }
        self.view.losses += 1;
        self.failures += 1;
        tracing::warn!(pid, code = %loss.code, blame = loss.blame.word(), "worker lost: {}", loss.message);
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
        let killed = exit == Some(ExitCause::Signal(SIGKILL));
        let memory = killed && self.sentence.is_none() && self.oom.killed_since();
        let (code, blame, message) = match (self.sentence.take(), exit) {
            (Some((code, reason)), _) => (code, Blame::Worker, reason),
            _ if self.stopping => {
                let message = "the node is shutting down".to_owned();
                (ErrorCode::NodeStopping, Blame::Outside, message)
            }
            (None, Some(ExitCause::Code(EXIT_VERSION_MISMATCH))) => (
                ErrorCode::ProtocolVersionMismatch,
                Blame::Worker,
                format!("{name} refused this node's protocol {PROTOCOL}"),
            ),
            (None, _) if memory => (
                ErrorCode::MemoryExhausted,
                Blame::Memory,
                format!("{name} was ended by the system because the machine ran out of memory"),
            ),
            (None, _) if starting => {
                let last = stderr.last().map_or(String::new(), |line| format!(": {line}"));
                let message = format!("{name} {ended} before it was ready{last}");
                (ErrorCode::WorkerCrashed, Blame::Worker, message)
            }
            (None, _) => {
                let blame = if killed { Blame::Outside } else { Blame::Worker };
                (ErrorCode::WorkerCrashed, blame, format!("{name} {ended}"))
            }
        };
        let run = self.runs.values().next();
        Loss {
            code,
            blame,
            message,
            pid,
            exit,
            phase: run.map(|run| run.clock.phase),
            step: run.map(|run| run.clock.step).filter(|step| *step > 0),
            rss_bytes: self.view.rss_bytes,
            stderr,
        }
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

    pub(super) fn give_up(&mut self, error: ErrorBody) {
        tracing::error!(code = %error.code, "the worker cannot be started: {}", error.message);
        for reply in self.waiting.drain(..) {
            let _ = reply.send(Err(error.clone())); // the asker may have left
        }
        self.view.starting = None;
        self.view.failure = Some(error);
        self.failed_until = Some(Instant::now() + self.config.failed_pause);
        self.failures = 0;
        self.set_state(WorkerState::Failed);
    }

    pub(super) fn finish_stop(&mut self) {
        self.set_state(WorkerState::Absent);
        let stopping = ErrorBody::new(ErrorCode::NodeStopping, "the node is shutting down");
        for reply in self.waiting.drain(..) {
            let _ = reply.send(Err(stopping.clone())); // the asker may have left
        }
        for reply in self.stopped.drain(..) {
            let _ = reply.send(()); // the asker may have left
        }
    }
}
