//! A look at a store that no node has open: can it be read, whose schema is it, is it sound. Changes no byte of it.

use super::{StoreError, database};
use crate::files;
use atelier_protocol::Bytes;
use rusqlite::{Connection, OpenFlags};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What can be said about a store from outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreReport {
    pub bytes: Bytes,
    /// Version of the schema that the file has, and the newest that this program knows.
    pub schema: i64,
    pub known_schema: i64,
    /// What SQLite's quick check found; nothing in a sound database.
    pub damage: Vec<String>,
}

/// Reads the whole file once. `None` when there is no file yet. Blocking.
pub fn inspect(path: &Path) -> Result<Option<StoreReport>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let look = || {
        let bytes = Bytes(files::metadata(path)?.len());
        let connection = open(path)?;
        let report = StoreReport {
            bytes,
            schema: database::schema_version(&connection)?,
            known_schema: database::known_version(),
            damage: database::quick_check(&connection)?,
        };
        Ok(report)
    };
    look().map(Some).map_err(|error: StoreError| error.while_opening(path))
}

/// A node that ended in order leaves one file, which can be read without any of SQLite's side files. After a crash there
/// is a log beside it that belongs to its contents; reading both makes the index of that log, as the next node would.
fn open(path: &Path) -> Result<Connection, StoreError> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if PathBuf::from(log).metadata().is_ok_and(|log| log.len() > 0) {
        return database::open_for_reading(path);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    Ok(Connection::open_with_flags(immutable(path), flags)?)
}

/// The path as a URI: bytes that mean something there are escaped.
fn immutable(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            other => {
                let _ = write!(uri, "%{other:02x}"); // a String takes all
            }
        }
    }
    uri.push_str("?immutable=1");
    uri
}

#[cfg(test)]
mod tests {
    use super::*;
    use atelier_protocol::ErrorCode;

    fn names(folder: &Path) -> Vec<PathBuf> {
        files::read_dir(folder).unwrap()
    }

    #[test]
    fn a_sound_store_is_described_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a ?&%#.db");
        assert_eq!(inspect(&path).unwrap(), None);
        drop(database::open_for_writing(&path).unwrap());
        let (before, bytes) = (names(folder.path()), files::read(&path).unwrap());
        let report = inspect(&path).unwrap().unwrap();
        assert_eq!((report.schema, report.damage.len()), (report.known_schema, 0));
        assert_eq!(report.bytes, Bytes(bytes.len() as u64));
        assert_eq!(names(folder.path()), before);
        assert_eq!(files::read(&path).unwrap(), bytes);
    }

    #[test]
    fn what_a_crash_left_in_the_log_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let (open, _) = database::open_for_writing(&path).unwrap();
        open.pragma_update(None, "user_version", 77).unwrap();
        // Copied while it is open, as a power cut would leave it.
        let crashed = folder.path().join("b.db");
        for ending in ["", "-wal"] {
            let from = folder.path().join(format!("a.db{ending}"));
            let to = folder.path().join(format!("b.db{ending}"));
            files::write_atomic(&to, &files::read(&from).unwrap()).unwrap();
        }
        assert_eq!(inspect(&crashed).unwrap().unwrap().schema, 77);
    }

    #[test]
    fn damage_and_files_that_are_no_store_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        drop(database::open_for_writing(&path).unwrap());
        let mut bytes = files::read(&path).unwrap();
        let last = bytes.len() - 4096;
        bytes[last..].fill(0xa5);
        files::write_atomic(&path, &bytes).unwrap();
        match inspect(&path) {
            Ok(report) => assert_ne!(report.unwrap().damage, Vec::<String>::new()),
            Err(error) => assert_eq!(error.code(), ErrorCode::StoreCorrupt),
        }
        files::write_atomic(&path, &[b'x'; 4096]).unwrap();
        let error = inspect(&path).expect_err("no database");
        assert_eq!(error.code(), ErrorCode::StoreCorrupt);
    }
}
