//! The composition root and the whole surface that a face needs: it starts the domains, holds their handles and is the
//! one file that names them all.

use atelier_protocol::http::{
    Artifact, Capabilities, DeviceEntry, EventKind, Job, JobState, List, MemoryEntry, ModelEntry,
    NodeInfo, Readiness, Validation,
};
use atelier_protocol::{ArtifactId, ErrorBody, JobId};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// What a node is started with. Read from settings by the server; the engine reads no environment.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Store, artifacts, logs. Private to its user.
    pub data: PathBuf,
    /// Worker environments, `DATA/envs` unless moved.
    pub envs: PathBuf,
    /// An interpreter of the user's (`ATELIER_PYTHON`) instead of an environment of our own.
    pub python: Option<PathBuf>,
    /// Folders to scan for models besides `DATA/models`; read, never written.
    pub model_folders: Vec<PathBuf>,
    /// Name of the model for requests that name none.
    pub default_model: Option<String>,
    /// Jobs that may wait; one more is answered with `processing.queue_full`.
    pub queue_limit: u32,
    /// Attempts at one job before it is set aside.
    pub max_attempts: u32,
    /// End by itself after this much idleness.
    pub idle_exit: Option<Duration>,
    /// Start a worker at boot rather than at the first job.
    pub warm_start: bool,
}

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

/// A submission's answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Submission {
    Accepted(Job),
    /// The idempotency key came before with the same request.
    Replayed(Job),
}

/// A running node. Cheap to clone; ends when [`Node::stop`] is called.
#[derive(Clone, Debug)]
pub struct Node {}

impl Node {
    /// Starts everything but the listener. Requires a tokio runtime.
    pub async fn start(config: NodeConfig) -> Result<Self, ErrorBody> {
        let _ = config;
        unimplemented!()
    }
    /// Takes no more work, ends the workers and closes the store. Running jobs are found again at the next start.
    pub async fn stop(&self) {
        unimplemented!()
    }
    /// Checks and accepts a job request, given as JSON so that every problem is reported at once.
    pub async fn submit(
        &self,
        body: Value,
        idempotency_key: Option<String>,
    ) -> Result<Submission, ErrorBody> {
        let _ = (body, idempotency_key);
        unimplemented!()
    }
    /// The same checks as [`Node::submit`], without accepting anything.
    pub async fn validate(&self, body: Value) -> Validation {
        let _ = body;
        unimplemented!()
    }
    pub async fn job(&self, id: JobId) -> Result<Job, ErrorBody> {
        let _ = id;
        unimplemented!()
    }
    /// Newest first.
    pub async fn jobs(
        &self,
        state: Option<JobState>,
        cursor: Option<String>,
        limit: u32,
    ) -> Result<List<Job>, ErrorBody> {
        let _ = (state, cursor, limit);
        unimplemented!()
    }
    /// Asks for the end of a job. Cancelling an ended job is answered with `processing.conflict`.
    pub async fn cancel(&self, id: JobId) -> Result<Job, ErrorBody> {
        let _ = id;
        unimplemented!()
    }
    /// The job once it has ended, or as it is when `limit` is over.
    pub async fn wait(&self, id: JobId, limit: Duration) -> Result<Job, ErrorBody> {
        let _ = (id, limit);
        unimplemented!()
    }
    /// Stored events after `after` (all when absent), then live ones. A job's stream closes after its `end`; the node's
    /// stream (`job` absent) starts now unless `after` is given.
    pub async fn events(
        &self,
        job: Option<JobId>,
        after: Option<u64>,
    ) -> Result<mpsc::Receiver<StreamEvent>, ErrorBody> {
        let _ = (job, after);
        unimplemented!()
    }
    /// An output and the absolute path of its file.
    pub async fn artifact(&self, id: ArtifactId) -> Result<(Artifact, PathBuf), ErrorBody> {
        let _ = id;
        unimplemented!()
    }
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceEntry> {
        unimplemented!()
    }
    #[must_use]
    pub fn memory(&self) -> Vec<MemoryEntry> {
        unimplemented!()
    }
    #[must_use]
    pub fn models(&self) -> Vec<ModelEntry> {
        unimplemented!()
    }
    pub fn model(&self, name: &str) -> Result<ModelEntry, ErrorBody> {
        let _ = name;
        unimplemented!()
    }
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        unimplemented!()
    }
    #[must_use]
    pub fn info(&self) -> NodeInfo {
        unimplemented!()
    }
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        unimplemented!()
    }
    /// Marks the node as in use, so that `idle_exit` starts again. Called for every HTTP request that is not a probe.
    pub fn touch(&self) {}
    /// Resolves when the node should end by itself (idle for `idle_exit`); never without that setting.
    pub async fn idle(&self) {
        std::future::pending().await
    }
}
