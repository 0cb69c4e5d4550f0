//! What is known about a worker that ended: how, during what, and its last words.

use atelier_protocol::worker::Phase;
use atelier_protocol::{Detail, ErrorBody, ErrorCode};
use std::collections::VecDeque;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitCause {
    Code(i32),
    Signal(i32),
    /// The system did not say.
    Unknown,
}

impl From<ExitStatus> for ExitCause {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => match signal_name(signal) {
                Some(name) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
            Self::Unknown => f.write_str("an unknown cause"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [(i32, &str); 8] = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (15, "SIGTERM"),
    ];
    NAMES.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name)
}

/// The last lines of a worker's stderr, shared between the task that drains it and whoever reports a failure.
#[derive(Clone, Debug, Default)]
pub struct StderrTail(Arc<Mutex<VecDeque<String>>>);

impl StderrTail {
    const LINES: usize = 200;

    pub(super) fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == Self::LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    /// The last `n` lines, oldest first.
    #[must_use]
    pub fn last(&self, n: usize) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().skip(lines.len().saturating_sub(n)).cloned().collect()
    }
}

/// Whose doing the end of a worker was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blame {
    /// It crashed, hung or broke the rules: what it was working on may be the reason.
    Worker,
    /// SIGKILL from somebody else, or the node's own end: says nothing about the work.
    Outside,
    /// The kernel's out-of-memory killer: the same work would end the same way.
    Memory,
}

impl Blame {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Outside => "outside",
            Self::Memory => "memory",
        }
    }
    /// As [`Loss::body`] wrote it; losses of older versions count as the worker's own.
    #[must_use]
    pub fn of(body: &ErrorBody) -> Self {
        let word = body.details.iter().find(|detail| detail.field == "blame");
        let word = word.map(|detail| detail.message.as_str());
        let all = [Self::Outside, Self::Memory];
        all.into_iter().find(|blame| Some(blame.word()) == word).unwrap_or(Self::Worker)
    }
}

/// Why a worker is gone, in the form in which a job's record keeps it.
#[derive(Clone, PartialEq, Debug)]
pub struct Loss {
    pub code: ErrorCode,
    pub blame: Blame,
    pub message: String,
    pub pid: Option<u32>,
    pub exit: Option<ExitCause>,
    /// What a run was busy with, and the denoise step that it had reached.
    pub phase: Option<Phase>,
    pub step: Option<u32>,
    /// Resident memory when it was last told.
    pub rss_bytes: Option<u64>,
    pub stderr: Vec<String>,
}

impl Loss {
    /// As an error body, with the evidence under `details`.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let mut details = vec![Detail::new("blame", self.blame.word())];
        let mut add = |field: &str, value: Option<String>| {
            details.extend(value.map(|value| Detail::new(field, value)));
        };
        add("pid", self.pid.map(|pid| pid.to_string()));
        add("exit", self.exit.map(|exit| exit.to_string()));
        add("phase", self.phase.map(|phase| phase.to_string()));
        add("step", self.step.map(|step| step.to_string()));
        add("rss_bytes", self.rss_bytes.map(|bytes| bytes.to_string()));
        // A stack dump is the last thing that a hung worker is asked for.
        let dump = self.stderr.iter().position(|line| {
            line.starts_with("Thread 0x") || line.starts_with("Current thread 0x")
        });
        let (said, stack) = self.stderr.split_at(dump.unwrap_or(self.stderr.len()));
        add("stderr", (!said.is_empty()).then(|| said.join("\n")));
        add("stack", (!stack.is_empty()).then(|| stack.join("\n")));
        ErrorBody::new(self.code, self.message.clone()).with_details(details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_only() {
        let tail = StderrTail::default();
        for n in 0..300 {
            tail.push(n.to_string());
        }
        assert_eq!(tail.last(2), ["298", "299"]);
        assert_eq!(tail.last(1000).len(), 200);
    }

    #[test]
    fn a_signal_is_named() {
        assert_eq!(ExitCause::Signal(9).to_string(), "signal 9 (SIGKILL)");
        assert_eq!(ExitCause::Code(64).to_string(), "exit status 64");
    }
}
