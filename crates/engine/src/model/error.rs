//! What can be wrong with a model, and with a request for one.

use super::safetensors::{HeaderFault, ReadFault};
use atelier_protocol::{ErrorBody, ErrorCode};

/// Why a model that was found cannot be used. File names are relative to the model's folder.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    #[error("{file} is missing")]
    Missing { file: String },
    #[error("{file}: {reason}")]
    Unreadable { file: String, reason: String },
    #[error("{file}: {fault}")]
    Header { file: String, fault: Box<HeaderFault> },
    #[error("{file} does not fit its configuration: {fact}")]
    Mismatch { file: String, fact: String },
    #[error("atelier.json: {reason}")]
    Card { reason: String },
    #[error(
        "{file} is a pickle file, which can run programs when it is opened; convert it to safetensors, or get the \
         safetensors version of the model"
    )]
    Pickle { file: String },
    #[error(
        "it looks like {what}; this version serves diffusers folders of Stable Diffusion 1 and 2"
    )]
    Unsupported { what: String },
}

impl Problem {
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing { .. }
            | Self::Unreadable { .. }
            | Self::Header { .. }
            | Self::Mismatch { .. }
            | Self::Card { .. } => ErrorCode::ModelUnreadable,
            Self::Pickle { .. } | Self::Unsupported { .. } => ErrorCode::ModelUnsupported,
        }
    }

    pub(super) fn reading(file: impl Into<String>, fault: ReadFault) -> Self {
        match fault {
            ReadFault::Io(reason) => Self::Unreadable { file: file.into(), reason },
            ReadFault::Header(fault) => Self::Header { file: file.into(), fault: Box::new(fault) },
        }
    }
}

impl From<Problem> for ErrorBody {
    fn from(problem: Problem) -> Self {
        Self::new(problem.code(), problem.to_string())
    }
}

/// Why a name leads to no model that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ModelError {
    #[error("no model is called `{name}`{}", suggestion(.nearest))]
    NotFound { name: String, nearest: Vec<String> },
    #[error("no usable model was found in {}", places(.folders))]
    NoModel { folders: Vec<String> },
    #[error("`{name}` fits more than one model: {}", .candidates.join(", "))]
    Ambiguous { name: String, candidates: Vec<String> },
    #[error("the model {id} cannot be used: {problem}")]
    Unusable { id: String, problem: Box<Problem> },
    #[error("the node is stopping")]
    Stopping,
}

impl ModelError {
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } | Self::NoModel { .. } => ErrorCode::ModelNotFound,
            Self::Ambiguous { .. } => ErrorCode::ModelAmbiguous,
            Self::Unusable { problem, .. } => problem.code(),
            Self::Stopping => ErrorCode::NodeStopping,
        }
    }
}

impl From<ModelError> for ErrorBody {
    fn from(error: ModelError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

fn suggestion(nearest: &[String]) -> String {
    if nearest.is_empty() {
        String::new()
    } else {
        format!(
            "; the nearest {} {}",
            if nearest.len() == 1 { "is" } else { "are" },
            nearest.join(", ")
        )
    }
}

fn places(folders: &[String]) -> String {
    if folders.is_empty() { "any folder".to_owned() } else { folders.join(", ") }
}
