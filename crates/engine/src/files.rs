//! File operations whose errors name the path. Everything that touches the disk goes through here.
#![expect(clippy::disallowed_methods, reason = "this is the wrapper that the bans point to")]

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

fn name(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to {what} {}: {error}", path.display()))
}

pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| name(path, "read", &e))
}

pub fn read_to_string(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path).map_err(|e| name(path, "read", &e))
}

/// Paths in a folder, sorted by name so that results do not depend on the file system.
pub fn read_dir(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = std::fs::read_dir(path)
        .and_then(|dir| dir.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>())
        .map_err(|e| name(path, "list", &e))?;
    entries.sort();
    Ok(entries)
}

pub fn metadata(path: &Path) -> io::Result<Metadata> {
    std::fs::metadata(path).map_err(|e| name(path, "look at", &e))
}

pub fn open(path: &Path) -> io::Result<File> {
    File::open(path).map_err(|e| name(path, "open", &e))
}

pub fn create(path: &Path) -> io::Result<File> {
    File::create(path).map_err(|e| name(path, "create", &e))
}

pub fn create_dir_all(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path).map_err(|e| name(path, "create", &e))
}

/// A folder that only its user may enter.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    create_dir_all(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(|e| name(path, "protect", &e))
}

/// A file that only its user may read, made empty if it is not there and otherwise kept.
pub fn create_private_file(path: &Path) -> io::Result<()> {
    let open = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    open.and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
        .map_err(|e| name(path, "create", &e))
}

pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to).map_err(|e| name(to, "move into place", &e))
}

pub fn remove_file(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path).map_err(|e| name(path, "remove", &e))
}

pub fn remove_dir_all(path: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(path).map_err(|e| name(path, "remove", &e))
}

/// Writes a file so that it is seen whole or not at all, also after a power cut: a temporary name, sync, rename, sync of
/// the folder.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A bare file name has an empty parent, which no system call takes for the current folder.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{file_name}.{}.part", uuid::Uuid::now_v7().simple()));
    let written = (|| {
        let mut file = create(&temporary)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|e| name(&temporary, "write", &e))?;
        rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = remove_file(&temporary); // it may never have come into being
    }
    written?;
    sync_dir(folder)
}

/// Makes the names in a folder durable.
pub fn sync_dir(folder: &Path) -> io::Result<()> {
    open(folder)?.sync_all().map_err(|e| name(folder, "sync", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_path() {
        let error = read(Path::new("/nowhere/at/all")).expect_err("no such file");
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }

    #[test]
    fn an_atomic_write_that_fails_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        write_atomic(&folder.path().join("a"), b"one").unwrap();
        write_atomic(&folder.path().join("a"), b"two").unwrap();
        assert_eq!(read(&folder.path().join("a")).unwrap(), b"two");
        std::fs::create_dir(folder.path().join("taken")).unwrap();
        write_atomic(&folder.path().join("taken"), b"x").expect_err("a folder is in the way");
        assert_eq!(read_dir(folder.path()).unwrap().len(), 2);
    }
}
