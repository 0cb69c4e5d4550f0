//! Why a picture could not become a file.

use atelier_protocol::{ErrorBody, ErrorCode};
use thiserror::Error;

#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PostprocessingError {
    #[error(
        "a picture of {width} × {height} with {channels} channels has {needed} bytes, not {given}"
    )]
    WrongSize { width: u32, height: u32, channels: u32, needed: u64, given: u64 },
    #[error("pictures have 3 or 4 channels, not {channels}")]
    Channels { channels: u32 },
    #[error("`{format}` is no output format; png, jpeg and webp are")]
    Format { format: String },
    #[error("jpeg has no transparency, and this picture does; png and webp have it")]
    Transparency,
    #[error(
        "{format} has no pictures of {width} × {height}; each side may have 1 to {limit} pixels"
    )]
    Dimensions { format: &'static str, width: u32, height: u32, limit: u32 },
    #[error("the {format} encoder refused the picture: {reason}")]
    Encoder { format: &'static str, reason: String },
}

impl PostprocessingError {
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::WrongSize { .. }
            | Self::Channels { .. }
            | Self::Format { .. }
            | Self::Transparency
            | Self::Dimensions { .. }
            | Self::Encoder { .. } => ErrorCode::PostprocessingFailed,
        }
    }
}

impl From<PostprocessingError> for ErrorBody {
    fn from(error: PostprocessingError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
