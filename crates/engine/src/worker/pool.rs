//! The node's workers, one a device, each started when it is first needed.

use super::supervisor::WorkerHandle;
use atelier_protocol::DeviceId;
use std::collections::BTreeMap;
use std::sync::Arc;

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
