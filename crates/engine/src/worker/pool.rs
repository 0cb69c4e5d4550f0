//! The node's workers, one a device, each started when it is first needed.

use super::supervisor::WorkerHandle;
use atelier_protocol::worker::ToWorker;
use atelier_protocol::{DeviceId, ErrorBody, ErrorCode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Longest that a worker may take to say what it sees.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// All workers of the node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Workers(Arc<BTreeMap<DeviceId, WorkerHandle>>);

impl Workers {
    #[must_use]
    pub fn new(workers: BTreeMap<DeviceId, WorkerHandle>) -> Self {
        Self(Arc::new(workers))
    }
    #[must_use]
    pub fn get(&self, device: &DeviceId) -> Option<&WorkerHandle> {
        self.0.get(device)
    }
    pub fn iter(&self) -> impl Iterator<Item = (&DeviceId, &WorkerHandle)> {
        self.0.iter()
    }
    /// Whether a device's worker answers: it is started if need be and asked for what it sees.
    pub async fn probe(&self, device: &DeviceId) -> Result<(), ErrorBody> {
        let Some(worker) = self.get(device) else {
            let message = format!("{device} has no worker on this node");
            return Err(ErrorBody::new(ErrorCode::DeviceNotFound, message));
        };
        worker.ready().await?;
        worker.request(PROBE_LIMIT, |id| ToWorker::ProbeDevices { id }).await.map(|_| ())
    }

    /// Ends all of them in order, side by side.
    pub async fn shutdown(&self) {
        let ends: Vec<_> = self.0.values().cloned().collect();
        let mut tasks = tokio::task::JoinSet::new();
        for worker in ends {
            tasks.spawn(async move { worker.shutdown().await });
        }
        tasks.join_all().await;
    }
}
