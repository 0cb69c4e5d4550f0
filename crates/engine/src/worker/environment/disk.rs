//! Sizes on disk.

use atelier_protocol::Bytes;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a folder takes up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Usage {
    /// Allocated blocks of all files.
    pub(super) bytes: Bytes,
    /// Without files that have another name elsewhere, such as in uv's cache: what its removal sets free.
    pub(super) exclusive: Bytes,
}

/// Free bytes for an ordinary user where `path` is or would come to be.
pub(super) fn free_bytes(path: &Path) -> io::Result<Bytes> {
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let disk = rustix::fs::statvfs(existing)?;
    Ok(Bytes(disk.f_bavail.saturating_mul(disk.f_frsize)))
}

/// Nothing is an error here: what cannot be read, or went away while we looked, takes up nothing.
pub(super) fn usage(path: &Path) -> Usage {
    let mut usage = Usage::default();
    add(path, &mut usage);
    usage
}

fn add(path: &Path, usage: &mut Usage) {
    let Ok(metadata) = path.symlink_metadata() else { return };
    let bytes = Bytes(metadata.blocks() * 512);
    usage.bytes = usage.bytes.saturating_add(bytes);
    if metadata.is_dir() {
        usage.exclusive = usage.exclusive.saturating_add(bytes);
        for entry in path.read_dir().into_iter().flatten().flatten() {
            add(&entry.path(), usage);
        }
    } else if metadata.nlink() == 1 {
        usage.exclusive = usage.exclusive.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_a_second_name_is_not_freed_by_removing_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        for at in [&inside, &outside] {
            crate::files::create_dir_all(at).unwrap();
        }
        crate::files::write_atomic(&inside.join("own"), &[1; 40_000]).unwrap();
        crate::files::write_atomic(&inside.join("shared"), &[1; 80_000]).unwrap();
        std::fs::hard_link(inside.join("shared"), outside.join("shared")).unwrap();
        let usage = usage(&inside);
        assert!(usage.bytes >= Bytes(120_000), "{usage:?}");
        assert!((Bytes(40_000)..Bytes(80_000)).contains(&usage.exclusive), "{usage:?}");
    }

    #[test]
    fn free_space_is_known_for_a_folder_that_is_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(&folder.path().join("not/yet")).unwrap() > Bytes(0));
    }
}
