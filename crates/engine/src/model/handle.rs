//! The model domain as everyone else sees it.

use super::actor::{Command, ModelActor};
use super::catalog;
use super::hash::Hashes;
use super::{CatalogView, Model, ModelError, ScanReport};
use crate::clock::Clock;
use atelier_protocol::http::ModelEntry;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Where models are looked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ModelConfig {
    /// Read, never written; in this order.
    pub folders: Vec<PathBuf>,
    /// Name of the model for requests that name none.
    pub default_model: Option<String>,
}

/// Reads never wait; scans go through the inbox. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ModelHandle {
    config: Arc<ModelConfig>,
    inbox: mpsc::Sender<Command>,
    view: watch::Receiver<CatalogView>,
    hashes: Hashes,
}

impl ModelHandle {
    /// Knows no model until the first [`Self::scan`]. Ends when the last handle is dropped.
    #[must_use]
    pub fn start(config: ModelConfig, clock: Clock) -> Self {
        let (publish, view) = watch::channel(CatalogView::default());
        let (inbox, commands) = mpsc::channel(64);
        let actor = ModelActor {
            folders: config.folders.clone().into(),
            clock,
            inbox: commands,
            view: publish,
        };
        tokio::spawn(actor.run());
        Self { config: Arc::new(config), inbox, view, hashes: Hashes::default() }
    }

    /// Looks through the folders; the view has changed when this returns.
    pub async fn scan(&self) -> Result<ScanReport, ModelError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Command::Scan { reply }).await.map_err(|_| ModelError::Stopping)?;
        answer.await.map_err(|_| ModelError::Stopping)
    }

    /// The latest published state. Never waits.
    #[must_use]
    pub fn view(&self) -> CatalogView {
        self.view.borrow().clone()
    }

    /// Wakes at every new generation.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<CatalogView> {
        self.view.clone()
    }

    /// A usable model by id, folder or file name, title or hash prefix; without a name the
    /// configured default, else the newest model that is not a toy, else the newest toy. Hashes
    /// count once they were computed.
    pub fn resolve(&self, name: Option<&str>) -> Result<Arc<Model>, ModelError> {
        let view = self.view();
        match name.or(self.config.default_model.as_deref()) {
            Some(name) => {
                let known = |model: &Arc<Model>| {
                    self.known_hash(model).map(|hash| (model.id.clone(), hash))
                };
                let hashes: BTreeMap<_, _> = view.models.iter().filter_map(known).collect();
                catalog::resolve(&view.models, &view.unusable, &hashes, name)
            }
            None => catalog::default_of(&view.models).ok_or_else(|| ModelError::NoModel {
                folders: self.config.folders.iter().map(|f| f.display().to_string()).collect(),
            }),
        }
    }

    /// BLAKE3 over all tensors, in hexadecimal: the model's identity. Reads every byte of the
    /// weights when asked for the first time, off the async threads.
    pub async fn hash(&self, model: &Model) -> Result<String, ModelError> {
        self.hashes.of(model).await.map_err(|problem| ModelError::Unusable {
            id: model.id.clone(),
            problem: Box::new(problem),
        })
    }

    /// The same if it was computed before.
    #[must_use]
    pub fn known_hash(&self, model: &Model) -> Option<String> {
        self.hashes.known(model)
    }

    /// Every model as clients see it, usable ones first. `resident_on` says where a model is
    /// loaded.
    #[must_use]
    pub fn entries(&self, resident_on: impl Fn(&Model) -> Vec<String>) -> Vec<ModelEntry> {
        let view = self.view();
        let default = self.resolve(None).ok();
        let usable = view.models.iter().map(|model| {
            let is_default = default.as_ref().is_some_and(|default| default.id == model.id);
            model.entry(self.known_hash(model), resident_on(model), is_default)
        });
        usable.chain(view.unusable.iter().map(|model| model.entry())).collect()
    }
}
