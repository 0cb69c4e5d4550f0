//! What is known about jobs while they run, and the stream of events: durable ones by number, progress beside them.
//!
//! Progress is kept in memory only. It is shared behind a lock that is held for a map access and never across a wait.

use crate::store::StoredEvent;
use atelier_protocol::JobId;
use atelier_protocol::http::{EventKind, Progress};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{broadcast, watch};

/// One event of a job's or the node's stream.
#[derive(Clone, PartialEq, Debug)]
pub struct StreamEvent {
    /// Increasing over the node for durable events; absent for progress.
    pub id: Option<u64>,
    pub job: JobId,
    pub kind: EventKind,
    /// For `end`: the whole job.
    pub data: Value,
}

impl From<StoredEvent> for StreamEvent {
    fn from(event: StoredEvent) -> Self {
        Self { id: Some(event.id), job: event.job, kind: event.kind, data: event.data }
    }
}

/// Shared between the tasks of this domain.
#[derive(Clone, Debug)]
pub(super) struct Live {
    progress: Arc<Mutex<HashMap<JobId, Progress>>>,
    pub(super) positions: watch::Sender<BTreeMap<JobId, u32>>,
    events: broadcast::Sender<StreamEvent>,
}

impl Live {
    pub(super) fn new() -> Self {
        let (events, _) = broadcast::channel(4096);
        let (positions, _) = watch::channel(BTreeMap::new());
        Self { progress: Arc::default(), positions, events }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<StreamEvent> {
        self.events.subscribe()
    }

    /// Announces what the store has committed.
    pub(super) fn committed(&self, events: Vec<StoredEvent>) {
        for event in events {
            if event.kind == EventKind::End {
                self.progress.lock().unwrap_or_else(PoisonError::into_inner).remove(&event.job);
            }
            let _ = self.events.send(event.into()); // nobody may be listening
        }
    }

    pub(super) fn progress(&self, job: JobId, progress: Progress) {
        let data = serde_json::to_value(&progress).unwrap_or_default();
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).insert(job, progress);
        let event = StreamEvent { id: None, job, kind: EventKind::Progress, data };
        let _ = self.events.send(event); // nobody may be listening
    }

    pub(super) fn of(&self, job: JobId) -> Progress {
        let known = self.progress.lock().unwrap_or_else(PoisonError::into_inner).get(&job).cloned();
        known.unwrap_or_else(|| Progress {
            queue_position: self.positions.borrow().get(&job).copied(),
            ..Progress::default()
        })
    }

    pub(super) fn forget(&self, job: JobId) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).remove(&job);
    }
}
