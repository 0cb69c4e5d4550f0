//! What can go wrong with the store, and the code that a client sees.

use atelier_protocol::{Detail, ErrorBody, ErrorCode};
use rusqlite::ffi;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Shared, because one failed commit is the answer to every operation in its group.
type Source = Arc<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// At start. Names the path, since it is the operator who reads this.
    #[error("the job store {} cannot be opened: {source}", path.display())]
    Open { path: PathBuf, source: Source },
    #[error("the job store cannot be used: {reason}")]
    Unavailable { reason: String, source: Source },
    #[error("the job store is closed")]
    Closed,
    #[error("the job store has schema version {found}, and this Atelier knows none above {known}")]
    Newer { found: i64, known: i64 },
    #[error("the job store is damaged: {what}")]
    Corrupt { what: String },
    #[error("the disk that holds the data folder is full")]
    Full { source: Source },
    /// An output could not be written for another reason than space.
    #[error("an output cannot be written: {kind}")]
    File { kind: io::ErrorKind, source: Source },
    /// A constraint of the schema refused what we wrote: a defect on this side.
    #[error("the job store refused a change: {source}")]
    Rule { source: Source },
    #[error("`{cursor}` is no cursor of this list")]
    Cursor { cursor: String },
}

impl StoreError {
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Open { .. } | Self::Unavailable { .. } | Self::Closed | Self::File { .. } => {
                ErrorCode::StoreUnavailable
            }
            Self::Newer { .. } | Self::Corrupt { .. } => ErrorCode::StoreCorrupt,
            Self::Full { .. } => ErrorCode::StoreFull,
            Self::Rule { .. } => ErrorCode::Internal,
            Self::Cursor { .. } => ErrorCode::RequestInvalid,
        }
    }

    pub(super) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }

    /// The same fact, with the path for the operator's eyes.
    pub(super) fn while_opening(self, path: &Path) -> Self {
        match self {
            Self::Unavailable { source, .. } => Self::Open { path: path.to_owned(), source },
            Self::Open { .. }
            | Self::Closed
            | Self::Newer { .. }
            | Self::Corrupt { .. }
            | Self::Full { .. }
            | Self::File { .. }
            | Self::Rule { .. }
            | Self::Cursor { .. } => self,
        }
    }

    /// SQLite reports most failed writes as an I/O error and keeps the reason to itself; the file system knows better.
    pub(super) fn or_full(self, folder: &Path) -> Self {
        match self {
            Self::Unavailable { source, .. } if is_io_error(&source) && is_full(folder) => {
                Self::Full { source }
            }
            other => other,
        }
    }

    pub(super) fn writing_file(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { source: Arc::new(error) }
            }
            kind => Self::File { kind, source: Arc::new(error) },
        }
    }
}

fn is_io_error(source: &Source) -> bool {
    source
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code)
        .is_some_and(|code| code == ffi::ErrorCode::SystemIoFailure)
}

fn is_full(folder: &Path) -> bool {
    const ROOM_FOR_ONE_WRITE_BYTES: u64 = 64 << 10;
    rustix::fs::statvfs(folder)
        .is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < ROOM_FOR_ONE_WRITE_BYTES)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use ffi::ErrorCode as Sqlite;
        let reason = error.to_string();
        match error.sqlite_error_code() {
            Some(Sqlite::DiskFull) => Self::Full { source: Arc::new(error) },
            Some(Sqlite::DatabaseCorrupt | Sqlite::NotADatabase) => Self::Corrupt { what: reason },
            Some(Sqlite::ConstraintViolation | Sqlite::TypeMismatch) => {
                Self::Rule { source: Arc::new(error) }
            }
            Some(_) => Self::Unavailable { reason, source: Arc::new(error) },
            // Everything else is rusqlite telling that a column does not hold what we wrote there.
            None => Self::Corrupt { what: reason },
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { source: Arc::new(error) }
            }
            kind => Self::Unavailable { reason: kind.to_string(), source: Arc::new(error) },
        }
    }
}

impl From<StoreError> for ErrorBody {
    fn from(error: StoreError) -> Self {
        let body = Self::new(error.code(), error.to_string());
        match error {
            StoreError::Cursor { .. } => body.with_details(vec![Detail::new(
                "cursor",
                "must be a `next` that this list gave before, unchanged",
            )]),
            StoreError::Open { .. }
            | StoreError::Unavailable { .. }
            | StoreError::Closed
            | StoreError::Newer { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Full { .. }
            | StoreError::File { .. }
            | StoreError::Rule { .. } => body,
        }
    }
}
