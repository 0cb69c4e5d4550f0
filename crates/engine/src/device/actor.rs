//! The one task that looks for devices: asks the sources off the async threads, publishes, then
//! replies.

use super::inventory::take_stock;
use super::{Device, DeviceView, Source, TorchBuild};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

pub(super) enum Command {
    Rescan { reply: oneshot::Sender<DeviceView> },
}

pub(super) struct DeviceActor {
    pub(super) sources: Arc<[Box<dyn Source>]>,
    pub(super) torch: TorchBuild,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) view: watch::Sender<DeviceView>,
}

impl DeviceActor {
    /// Ends when the last handle is dropped.
    pub(super) async fn run(mut self) {
        while let Some(command) = self.inbox.recv().await {
            match command {
                Command::Rescan { reply } => {
                    // Waiting here holds up nothing but other rescans, which want the same answer.
                    let (devices, findings) = look(Arc::clone(&self.sources), self.torch).await;
                    let next = DeviceView {
                        generation: self.view.borrow().generation + 1,
                        devices: devices.into(),
                        findings: findings.into(),
                    };
                    self.view.send_replace(next.clone());
                    let _ = reply.send(next); // the caller may have left
                }
            }
        }
    }
}

/// Asks every source once.
pub(super) async fn look(
    sources: Arc<[Box<dyn Source>]>,
    torch: TorchBuild,
) -> (Vec<Device>, Vec<String>) {
    let looking = tokio::task::spawn_blocking(move || {
        let found = sources.iter().map(|source| (source.name(), source.discover())).collect();
        take_stock(found, torch)
    });
    let (devices, findings) = looking
        .await
        .unwrap_or_else(|error| (Vec::new(), vec![format!("looking for devices: {error}")]));
    for finding in &findings {
        tracing::warn!(finding, "device discovery");
    }
    (devices, findings)
}
