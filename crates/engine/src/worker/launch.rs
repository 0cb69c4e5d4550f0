//! How a worker comes to be started: the step before the process, which may have to install its environment first.

use super::process::WorkerCommand;
use atelier_protocol::ErrorBody;
use std::future::Future;
use std::pin::Pin;
use tokio::sync::mpsc;

/// What a start is busy with.
#[derive(Clone, PartialEq, Debug)]
pub enum StartProgress {
    /// The environment is being installed: bytes so far, and in all where known.
    Install { done_bytes: u64, total_bytes: Option<u64> },
    /// The process is there and imports its libraries.
    Import,
}

/// A command in the making.
pub type Preparation = Pin<Box<dyn Future<Output = Result<WorkerCommand, ErrorBody>> + Send>>;

/// Says which program to start. Asked before every start, so that a repaired or changed environment is picked up.
pub trait Launcher: Send + Sync {
    fn prepare(&self, progress: mpsc::Sender<StartProgress>) -> Preparation;
}
