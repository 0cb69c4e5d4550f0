//! What is known about a worker that ended: how, during what, and its last words.

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

/// Why a worker is gone, in the form in which a job's record keeps it.
#[derive(Clone, PartialEq, Debug)]
pub struct Loss {
    pub code: ErrorCode,
    pub message: String,
    pub pid: Option<u32>,
    pub exit: Option<ExitCause>,
    pub stderr: Vec<String>,
}

impl Loss {
    /// As an error body, with the evidence under `details`.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let mut details = Vec::new();
        if let Some(exit) = self.exit {
            details.push(Detail::new("exit", exit.to_string()));
        }
        if !self.stderr.is_empty() {
            details.push(Detail::new("stderr", self.stderr.join("\n")));
        }
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
