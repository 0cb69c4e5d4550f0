//! `DATA/node.lock`: two nodes never share one data folder. The kernel releases the lock when the process ends, however it
//! ends, so a file that was left behind locks nothing.

use atelier_protocol::{ErrorBody, ErrorCode};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Holds the data folder until it is dropped.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

/// What came of trying.
enum Tried {
    Taken(File),
    /// With the process that holds it, when it said so.
    Held(Option<u32>),
}

pub(crate) fn take(data: &Path) -> Result<DataLock, ErrorBody> {
    let failed = |error: io::Error| {
        let message = format!("failed to lock {}: {error}", data.join("node.lock").display());
        let code = match error.kind() {
            io::ErrorKind::StorageFull => ErrorCode::StoreFull,
            _ => ErrorCode::StoreUnavailable,
        };
        ErrorBody::new(code, message)
    };
    match attempt(data).map_err(failed)? {
        Tried::Taken(mut file) => {
            let pid = std::process::id().to_string();
            file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())).map_err(failed)?;
            Ok(DataLock { _file: file })
        }
        Tried::Held(pid) => {
            let holder = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            let message = format!("another node{holder} uses the data folder {}", data.display());
            Err(ErrorBody::new(ErrorCode::StoreUnavailable, message))
        }
    }
}

/// Whether a node uses the data folder now. A folder that cannot be looked at counts as free; using it will say why.
pub(crate) fn is_held(data: &Path) -> bool {
    data.join("node.lock").exists() && matches!(attempt(data), Ok(Tried::Held(_)))
}

fn attempt(data: &Path) -> io::Result<Tried> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(data.join("node.lock"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            file.rewind()?;
            Ok(Tried::Taken(file))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let read = file.read_to_string(&mut text);
            Ok(Tried::Held(read.ok().and_then(|_| text.trim().parse().ok())))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_is_refused_with_the_pid_of_the_first() {
        let data = tempfile::tempdir().unwrap();
        assert!(!is_held(data.path()));
        let lock = take(data.path()).unwrap();
        assert!(is_held(data.path()));
        let error = take(data.path()).expect_err("held");
        assert_eq!(error.code, ErrorCode::StoreUnavailable);
        let pid = format!("(pid {})", std::process::id());
        assert!(error.message.contains(&pid), "{}", error.message);
        drop(lock);
        take(data.path()).unwrap();
    }
}
