//! How a request to this domain may fail.

use crate::store::StoreError;
use atelier_protocol::http::JobState;
use atelier_protocol::{ArtifactId, ErrorBody, ErrorCode, JobId};

#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessingError {
    #[error("no job has the id {0}")]
    NotFound(JobId),
    #[error("no artifact has the id {0}")]
    NoArtifact(ArtifactId),
    #[error("the job has ended: it is {0}")]
    Ended(JobState),
    #[error("this idempotency key came before with another request")]
    KeyReused,
    #[error("{queued} jobs are waiting, which is all that this node queues")]
    QueueFull { queued: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ProcessingError {
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::ProcessingNotFound,
            Self::NoArtifact(_) => ErrorCode::ArtifactNotFound,
            Self::Ended(_) | Self::KeyReused => ErrorCode::ProcessingConflict,
            Self::QueueFull { .. } => ErrorCode::ProcessingQueueFull,
            Self::Store(error) => error.code(),
        }
    }
}

impl From<ProcessingError> for ErrorBody {
    fn from(error: ProcessingError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
