//! The words of the store: what goes in, what comes out, and how each operation may end.

use super::StoredFile;
use atelier_protocol::http::{
    Artifact, Attempt, EventKind, Job, JobState, Progress, ResolvedRequest, Timings,
};
use atelier_protocol::{ArtifactId, Detail, DeviceId, ErrorBody, JobId};
use serde_json::Value;
use std::path::PathBuf;

/// A job on its way in.
#[derive(Clone, PartialEq, Debug)]
pub struct NewJob {
    pub id: JobId,
    pub owner: String,
    pub kind: String,
    pub request: ResolvedRequest,
    pub warnings: Vec<Detail>,
    pub created_at: String,
    pub idempotency: Option<Idempotency>,
    /// Jobs that may be queued before this one is refused.
    pub queue_limit: u32,
}

/// A caller's promise that this request is one request, however often it is sent. Kept for 24 hours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Idempotency {
    pub key: String,
    pub body_hash: String,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Submitted {
    New {
        events: Vec<StoredEvent>,
    },
    /// The key came before with the same body, and made this job.
    Replayed {
        job: JobId,
    },
    /// The key came before with another body.
    Conflict,
    QueueFull {
        queued: u64,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub enum Claim {
    Claimed {
        attempt: u32,
        events: Vec<StoredEvent>,
    },
    /// It is running, has ended, or was never there.
    NotQueued,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Assigned {
    Yes,
    /// The job has moved on from this attempt.
    Stale,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Requeued {
    Yes {
        events: Vec<StoredEvent>,
    },
    /// Its cancel was asked for while it ran; so it has ended instead.
    Cancelled {
        events: Vec<StoredEvent>,
    },
    Stale,
}

#[derive(Clone, PartialEq, Debug)]
pub enum CancelOutcome {
    /// It was queued and has ended.
    Cancelled {
        events: Vec<StoredEvent>,
    },
    /// It is running; the wish is stored and outlives this node.
    Requested,
    AlreadyRequested,
    Ended(JobState),
    NotFound,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Finalised {
    Done { events: Vec<StoredEvent> },
    Stale,
}

/// What was found running under an older boot.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recovered {
    pub requeued: Vec<JobId>,
    pub cancelled: Vec<JobId>,
    pub events: Vec<StoredEvent>,
}

/// The three states that a job can end in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndState {
    Succeeded,
    Failed,
    Cancelled,
}

impl From<EndState> for JobState {
    fn from(state: EndState) -> Self {
        match state {
            EndState::Succeeded => Self::Succeeded,
            EndState::Failed => Self::Failed,
            EndState::Cancelled => Self::Cancelled,
        }
    }
}

/// How one attempt ended, which is not always how the job did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttemptOutcome {
    Succeeded,
    Failed,
    Cancelled,
    /// Nobody is left to say: the worker or the node ended.
    Lost,
}

impl AttemptOutcome {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }
}

/// The one end of a job and everything that goes with it, in one transaction.
#[derive(Clone, PartialEq, Debug)]
pub struct Ending {
    pub state: EndState,
    pub artifacts: Vec<NewArtifact>,
    pub error: Option<ErrorBody>,
    pub timings: Timings,
    /// Of the attempt that ends with the job.
    pub outcome: AttemptOutcome,
    pub cause: Option<ErrorBody>,
}

/// An output whose file is already durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewArtifact {
    pub id: ArtifactId,
    /// Position among the pictures of the job.
    pub index: u32,
    pub media_type: String,
    pub width: u32,
    pub height: u32,
    pub seed: u64,
    pub file: StoredFile,
}

/// A job as it is stored: all of [`Job`] but the progress, which is only known while it runs.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredJob {
    pub id: JobId,
    pub owner: String,
    pub kind: String,
    pub state: JobState,
    pub request: ResolvedRequest,
    pub warnings: Vec<Detail>,
    /// Number of the current or last attempt; 0 before the first.
    pub attempt: u32,
    pub cancel_requested: bool,
    pub created_at: String,
    /// Of the first attempt.
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    pub attempts: Vec<Attempt>,
    pub artifacts: Vec<Artifact>,
    pub error: Option<ErrorBody>,
    pub timings: Timings,
}

impl StoredJob {
    /// The answer to `GET /v1/jobs/{id}`.
    #[must_use]
    pub fn into_job(self, progress: Progress) -> Job {
        Job {
            id: self.id,
            kind: self.kind,
            state: self.state,
            created_at: self.created_at,
            started_at: self.started_at,
            ended_at: self.ended_at,
            request: self.request,
            progress,
            attempts: self.attempts,
            artifacts: self.artifacts,
            warnings: self.warnings,
            error: self.error,
            timings: self.timings,
        }
    }
}

/// A job in line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueuedJob {
    pub id: JobId,
    /// Attempts so far.
    pub attempt: u32,
    /// The only device that its request allows.
    pub device: Option<DeviceId>,
    pub model: String,
}

/// Jobs by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub queued: u64,
    pub running: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub cancelled: u64,
}

/// A durable event. Numbers increase over the whole node and are never used twice.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredEvent {
    pub id: u64,
    pub job: JobId,
    pub kind: EventKind,
    /// `state`: `{"state", "attempt"}`; `artifact`: the artifact; `warning`: the detail; `end`: null, because whoever
    /// reads it fills in the job as it then is.
    pub data: Value,
    pub at: String,
}

/// An output and where its file is.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredArtifact {
    pub job: JobId,
    pub artifact: Artifact,
    /// Below the folder of [`super::ArtifactFiles`].
    pub path: PathBuf,
}

/// The route that serves an output.
#[must_use]
pub fn artifact_url(id: ArtifactId) -> String {
    format!("/v1/artifacts/{id}")
}
