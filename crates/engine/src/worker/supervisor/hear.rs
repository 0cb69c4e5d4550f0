//! What a worker says: lines in, each to whom it belongs. Work is fenced here.

use super::actor::Actor;
use super::{RunEvent, welcome};
use crate::worker::Decoded;
use crate::worker::view::WorkerState;
use atelier_protocol::worker::{FromWorker, MAX_BAD_LINES, PROTOCOL, Work};
use atelier_protocol::{ErrorBody, ErrorCode};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio::time::Instant;

impl Actor {
    pub(super) fn on_line(&mut self, line: Decoded) {
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
                self.rss_floor = Some(self.rss_floor.map_or(rss_bytes, |f| f.min(rss_bytes)));
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
        let welcome = welcome(self.config.threads);
        let heard = self.pipes.as_ref().is_some_and(|pipes| pipes.send(&welcome));
        if protocol != PROTOCOL || !heard {
            let reason = format!("the worker speaks protocol {protocol}, this node {PROTOCOL}");
            self.end_process(ErrorCode::ProtocolVersionMismatch, reason);
        }
    }

    fn on_ready(&mut self, versions: BTreeMap<String, String>, backends: Vec<String>) {
        if self.view.state != WorkerState::Starting || self.sentence.is_some() {
            self.view.stale_messages += 1;
            return;
        }
        self.view.versions.extend(versions);
        self.become_ready(backends);
    }

    fn on_answer(&mut self, re: u64, answer: Result<FromWorker, ErrorBody>) {
        match self.pending.remove(&re) {
            Some(pending) => drop(pending.reply.send(answer)), // the asker may have left
            None => self.view.stale_messages += 1,
        }
    }

    fn on_work(&mut self, work: Work, last: bool, message: FromWorker) {
        let Some(run) = self.runs.get_mut(&work.run).filter(|run| run.open.contains(&work)) else {
            self.view.stale_messages += 1;
            return;
        };
        match message {
            FromWorker::Progress { phase, step, steps, .. } => {
                run.clock.progress(phase, step, steps, Instant::now());
            }
            _ => run.clock.alive(Instant::now()),
        }
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
}
