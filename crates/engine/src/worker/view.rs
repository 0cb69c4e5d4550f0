//! What others may know about a worker without asking it.

use super::launch::StartProgress;
use atelier_protocol::ErrorBody;
use std::collections::BTreeMap;

/// Where a worker stands. See the picture in the module above.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WorkerState {
    #[default]
    Absent,
    Starting,
    Ready,
    Draining,
    Lost,
    Failed,
}

impl WorkerState {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Lost => "lost",
            Self::Failed => "failed",
        }
    }
}

/// A snapshot, published after every change.
#[derive(Clone, Debug, Default)]
pub struct WorkerView {
    pub state: WorkerState,
    /// RFC 3339, UTC; of the last change of state.
    pub since: String,
    /// Counts the workers that became ready; whatever was resident under another epoch is gone.
    pub epoch: u64,
    pub pid: Option<u32>,
    /// Versions as the worker reported them: python, torch, diffusers, …
    pub versions: BTreeMap<String, String>,
    pub backends: Vec<String>,
    /// How far a start is.
    pub starting: Option<StartProgress>,
    /// Why it is lost or failed.
    pub failure: Option<ErrorBody>,
    pub rss_bytes: Option<u64>,
    pub device_bytes: Option<u64>,
    /// Lines that were refused, messages that no longer belonged to current work, and losses: since the node started.
    pub refused_lines: u64,
    pub stale_messages: u64,
    pub losses: u64,
    /// Whether a spare process stands by.
    pub spare: bool,
    /// Workers replaced because they had grown.
    pub recycled: u64,
}
