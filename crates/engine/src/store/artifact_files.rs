//! The folder of output files, named by their content.
//!
//! A file is whole, synced and under its final name before the transaction that names it commits; so a stored artifact
//! always has its file, and a crash leaves at most a file that nothing names. It never deletes what was written.

use super::StoreError;
use crate::files;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where a file was put. Equal content has equal names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredFile {
    /// BLAKE3 of the bytes.
    pub blake3: String,
    /// `ab/cdef….png`, below the folder.
    pub relative_path: String,
    pub bytes: u64,
}

/// Writes and finds output files. Blocking; called off the async threads.
#[derive(Clone, Debug)]
pub struct ArtifactFiles {
    root: PathBuf,
}

/// Unfinished files live here and nowhere else, so that a crash's leftovers are found without a search.
const UNFINISHED: &str = "unfinished";

impl ArtifactFiles {
    /// Makes the folder if need be and removes what an unclean stop left unfinished. Only one node may hold it.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let open = || -> io::Result<()> {
            files::create_private_dir(root)?;
            let unfinished = root.join(UNFINISHED);
            files::create_dir_all(&unfinished)?;
            for leftover in files::read_dir(&unfinished)? {
                files::remove_file(&leftover)?;
            }
            Ok(())
        };
        open().map_err(StoreError::writing_file)?;
        Ok(Self { root: root.to_owned() })
    }

    /// Stores the bytes under their hash, durably. Content that is already here is used again.
    pub fn write(&self, bytes: &[u8], extension: &str) -> Result<StoredFile, StoreError> {
        debug_assert!(is_extension(extension), "extensions are words of ours");
        let hash = blake3::hash(bytes).to_hex().to_string();
        let (shard, rest) = hash.split_at(2);
        let relative_path = format!("{shard}/{rest}.{extension}");
        self.place(&self.root.join(&relative_path), bytes).map_err(StoreError::writing_file)?;
        Ok(StoredFile { blake3: hash, relative_path, bytes: bytes.len() as u64 })
    }

    fn place(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.root);
        files::create_dir_all(folder)?;
        // Compared rather than trusted: a damaged file of this name is replaced instead of being served for ever.
        if !files::read(path).is_ok_and(|there| there == bytes) {
            let name = uuid::Uuid::now_v7().simple().to_string();
            let temporary = self.root.join(UNFINISHED).join(name);
            let written =
                write_synced(&temporary, bytes).and_then(|()| files::rename(&temporary, path));
            if written.is_err() {
                let _ = files::remove_file(&temporary); // it may never have come into being
            }
            written?;
        }
        // Also for content that was here: whoever put it there may not have come to this line yet.
        files::sync_dir(folder)?;
        files::sync_dir(&self.root)
    }

    /// The absolute path of a stored file. A name that this folder would not have given is damage in the store.
    pub fn path(&self, relative: &Path) -> Result<PathBuf, StoreError> {
        let given = relative.to_str().is_some_and(is_name);
        if given {
            Ok(self.root.join(relative))
        } else {
            Err(StoreError::corrupt("the path of an artifact leads out of its folder"))
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = files::create(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| {
        io::Error::new(error.kind(), format!("failed to write {}: {error}", path.display()))
    })
}

fn is_extension(word: &str) -> bool {
    (1..=8).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// `ab/` + 62 hex digits + `.ext`, and nothing else.
fn is_name(name: &str) -> bool {
    let hex = |s: &str, digits: usize| {
        s.len() == digits && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    name.split_once('/').and_then(|(shard, file)| Some((shard, file.split_once('.')?))).is_some_and(
        |(shard, (rest, extension))| hex(shard, 2) && hex(rest, 62) && is_extension(extension),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use atelier_protocol::ErrorCode;

    fn names(folder: &Path) -> Vec<String> {
        files::read_dir(folder)
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn equal_content_is_kept_once_and_found_under_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = ArtifactFiles::open(folder.path()).unwrap();
        let one = artifacts.write(b"a picture", "png").unwrap();
        let two = artifacts.write(b"a picture", "png").unwrap();
        assert_eq!(one, two);
        assert_eq!(one.blake3, blake3::hash(b"a picture").to_hex().to_string());
        let path = artifacts.path(Path::new(&one.relative_path)).unwrap();
        assert_eq!(files::read(&path).unwrap(), b"a picture");
        assert_eq!(names(path.parent().unwrap()).len(), 1);
        assert!(names(&folder.path().join(UNFINISHED)).is_empty());
    }

    #[test]
    fn a_damaged_file_is_replaced_by_the_next_write_of_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = ArtifactFiles::open(folder.path()).unwrap();
        let stored = artifacts.write(b"a picture", "png").unwrap();
        let path = artifacts.path(Path::new(&stored.relative_path)).unwrap();
        files::write_atomic(&path, b"a pict").unwrap();
        artifacts.write(b"a picture", "png").unwrap();
        assert_eq!(files::read(&path).unwrap(), b"a picture");
    }

    #[test]
    fn what_a_crash_left_unfinished_is_gone_after_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        ArtifactFiles::open(folder.path()).unwrap();
        files::write_atomic(&folder.path().join(UNFINISHED).join("half"), b"x").unwrap();
        ArtifactFiles::open(folder.path()).unwrap();
        assert!(names(&folder.path().join(UNFINISHED)).is_empty());
    }

    #[test]
    fn a_failed_write_leaves_no_unfinished_file() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = ArtifactFiles::open(folder.path()).unwrap();
        let stored = artifacts.write(b"a picture", "png").unwrap();
        let path = folder.path().join(&stored.relative_path);
        files::remove_file(&path).unwrap();
        files::create_dir_all(&path).unwrap();
        let error = artifacts.write(b"a picture", "png").expect_err("a folder is in the way");
        assert_eq!(error.code(), ErrorCode::StoreUnavailable);
        assert!(names(&folder.path().join(UNFINISHED)).is_empty());
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = StoreError::writing_file(io::Error::from_raw_os_error(28));
        assert_eq!(full.code(), ErrorCode::StoreFull);
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = ArtifactFiles::open(folder.path()).unwrap();
        let rest = "c".repeat(62);
        assert!(artifacts.path(Path::new(&format!("ab/{rest}.png"))).is_ok());
        for bad in [
            "../secret".to_owned(),
            "/etc/passwd".to_owned(),
            format!("ab/../{rest}.png"),
            format!("ab/{rest}.png/x"),
            format!("ab/{rest}./x"),
            format!("AB/{rest}.png"),
            format!("ab/{rest}"),
            String::new(),
        ] {
            let error = artifacts.path(Path::new(&bad)).expect_err(&bad);
            assert_eq!(error.code(), ErrorCode::StoreCorrupt);
        }
    }
}
