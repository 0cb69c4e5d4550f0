//! What can be wrong with the settings, always with the place where it was written.

use atelier_protocol::{Detail, ErrorBody, ErrorCode};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: Option<usize> },
    Environment { name: String },
    Flag { name: String },
}

impl Origin {
    /// One word for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File { .. } => "file",
            Self::Environment { .. } => "env",
            Self::Flag { .. } => "flag",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: Some(line) } => write!(f, "{}, line {line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Environment { name } => write!(f, "environment variable {name}"),
            Self::Flag { name } => write!(f, "flag {name}"),
        }
    }
}

/// One wrong setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub origin: Origin,
    /// Empty for the file as a whole.
    pub key: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}", summary(.0))]
    Wrong(Vec<Problem>),
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

fn summary(problems: &[Problem]) -> String {
    match problems {
        [] => "a setting is wrong".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}

impl ConfigError {
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Wrong(_) | Self::Unreadable(_) => ErrorCode::ConfigInvalid,
        }
    }
}

impl From<ConfigError> for ErrorBody {
    fn from(error: ConfigError) -> Self {
        let body = Self::new(error.code(), error.to_string());
        match error {
            // A single problem is the message already.
            ConfigError::Wrong(problems) if problems.len() > 1 => body.with_details(
                problems.iter().map(|p| Detail::new(p.key.clone(), p.to_string())).collect(),
            ),
            ConfigError::Wrong(_) | ConfigError::Unreadable(_) => body,
        }
    }
}
