//! The one task that scans: walks and reads off the async threads, publishes, then replies.

use super::catalog::Catalog;
use super::diffusers::examine;
use super::scan::walk;
use super::{CatalogView, ScanReport};
use crate::clock::Clock;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

pub(super) enum Command {
    Scan { reply: oneshot::Sender<ScanReport> },
}

pub(super) struct ModelActor {
    pub(super) folders: Arc<[PathBuf]>,
    pub(super) clock: Clock,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) view: watch::Sender<CatalogView>,
}

impl ModelActor {
    /// Ends when the last handle is dropped.
    pub(super) async fn run(mut self) {
        while let Some(command) = self.inbox.recv().await {
            match command {
                Command::Scan { reply } => {
                    let report = self.scan().await;
                    let _ = reply.send(report); // the caller may have left
                }
            }
        }
    }

    async fn scan(&self) -> ScanReport {
        let folders = Arc::clone(&self.folders);
        let scanned = tokio::task::spawn_blocking(move || {
            let found = walk(&folders);
            let catalog = Catalog::new(found.candidates.iter().map(examine).collect());
            (catalog, found.ignored, found.findings)
        });
        // Waiting here holds up nothing but other scans, which want the same answer.
        let (catalog, ignored, findings) = match scanned.await {
            Ok(scanned) => scanned,
            Err(error) => {
                // What was known before is still the best that we know.
                let finding = format!("the scan broke off: {error}");
                return ScanReport { findings: vec![finding], ..ScanReport::default() };
            }
        };
        for finding in &findings {
            tracing::warn!(finding, "model scan");
        }
        let report = ScanReport {
            usable: catalog.models.iter().map(|model| model.id.clone()).collect(),
            unusable: catalog
                .unusable
                .iter()
                .map(|model| (model.id.clone(), model.problem.clone()))
                .collect(),
            ignored,
            findings,
        };
        self.view.send_modify(|view| {
            *view = CatalogView {
                generation: view.generation + 1,
                scanned_at: Some(self.clock.stamp()),
                models: catalog.models.into(),
                unusable: catalog.unusable.into(),
            };
        });
        report
    }
}
