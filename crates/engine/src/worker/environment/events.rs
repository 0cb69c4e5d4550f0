//! What an installation tells while it goes on.

use super::{Interpreter, Notice};
use atelier_protocol::Bytes;
use serde::Serialize;
use std::fmt;

/// In the order in which they come; `Bytes` only during [`Step::Fetch`].
#[derive(Clone, PartialEq, Debug)]
pub enum InstallEvent {
    /// What is about to happen and what it costs, before anything is downloaded.
    Notice(Box<Notice>),
    Step(Step),
    /// Bytes unpacked so far. Less than `total` at the end when packages were in uv's cache.
    Bytes {
        done: Bytes,
        total: Bytes,
    },
    Done {
        interpreter: Interpreter,
        seconds: f64,
        bytes: Bytes,
    },
}

/// A stage of an installation; prints itself as what follows "failed to …".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Another process installs; we wait for it.
    Wait,
    /// Asking interpreters and tools for their versions.
    Look,
    /// Removing what an interrupted installation left.
    Clear,
    /// Fetching uv itself.
    Uv,
    Create,
    Fetch,
    Check,
    /// Making it durable and moving it into place.
    Finish,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wait => "wait for another installation",
            Self::Look => "look for Python and uv",
            Self::Clear => "remove what an interrupted installation left",
            Self::Uv => "fetch the installer (uv)",
            Self::Create => "create the environment",
            Self::Fetch => "download and install the packages",
            Self::Check => "check the installed packages",
            Self::Finish => "move the environment into place",
        })
    }
}
