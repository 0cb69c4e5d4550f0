//! How a request to this domain may fail.

use crate::store::StoreError;
use atelier_protocol::http::JobState;
use atelier_protocol::{ArtifactId, Detail, ErrorBody, ErrorCode, JobId};
use std::time::Duration;

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
    #[error("{model} has ended several workers in a row and is left alone for {} s", retry_after.as_secs() + 1)]
    ModelBroken { model: String, retry_after: Duration },
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
            Self::ModelBroken { .. } => ErrorCode::ModelBroken,
            Self::Store(error) => error.code(),
        }
    }
}

impl From<ProcessingError> for ErrorBody {
    fn from(error: ProcessingError) -> Self {
        let body = Self::new(error.code(), error.to_string());
        match error {
            // Also the source of the `Retry-After` header.
            ProcessingError::ModelBroken { retry_after, .. } => {
                let seconds = (retry_after.as_secs() + 1).to_string();
                body.with_details(vec![Detail::new("retry_after_s", seconds)])
            }
            _ => body,
        }
    }
}
