//! What can go wrong when somebody asks for memory.

use super::ledger::Arithmetic;
use atelier_protocol::{Bytes, DeviceId, ErrorBody, ErrorCode};

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("needs {asked} on {device}; {arithmetic}")]
    Insufficient { device: DeviceId, asked: Bytes, arithmetic: Arithmetic },
    #[error("no memory is kept for a device called `{device}`")]
    UnknownDevice { device: DeviceId },
    #[error("the node is stopping")]
    Stopping,
}

impl MemoryError {
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Insufficient { .. } => ErrorCode::MemoryInsufficient,
            Self::UnknownDevice { .. } => ErrorCode::DeviceNotFound,
            Self::Stopping => ErrorCode::NodeStopping,
        }
    }
}

impl From<MemoryError> for ErrorBody {
    fn from(error: MemoryError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
