//! The data folder and the disks below it, looked at without touching them.

use super::finding::Finding;
use crate::config::Config;
use atelier_engine::files;
use atelier_protocol::Bytes;
use rustix::fs::{Access, access, statvfs};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Below this much free space pictures and the store soon have no room.
const LITTLE_SPACE: Bytes = Bytes::gib(1);

/// Whether a node could work in its folder: asked of the kernel, not tried.
pub(super) fn data(data: &Path) -> Finding {
    let what = "data";
    let elsewhere = "name another folder with `--data` or `ATELIER_DATA`";
    let shown = data.display();
    if data.symlink_metadata().is_ok() && !data.exists() {
        let seen = format!("{shown} is a link to a place that is not there");
        return Finding::bad(what, seen, format!("mend the link, or {elsewhere}"));
    }
    let Some(there) = existing(data) else {
        return Finding::bad(what, format!("{shown} has no folder above it"), elsewhere);
    };
    if !there.is_dir() {
        let seen = format!("{} is in the way and is no folder", there.display());
        return Finding::bad(what, seen, format!("move it away, or {elsewhere}"));
    }
    if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let seen = format!("{} cannot be written to: {error}", there.display());
        let fix = format!("make it writable for this user, or {elsewhere}");
        return Finding::bad(what, seen, fix);
    }
    if there != data {
        return Finding::good(what, format!("{shown} will be made by the first node"));
    }
    let mode = files::metadata(data).map_or(0o700, |about| about.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        return Finding::note(
            what,
            format!("{shown} can be written; others may look into it (mode {mode:o})"),
            format!("`chmod 700 {shown}`; a node does so when it starts"),
        );
    }
    Finding::good(what, format!("{shown} can be written and is private"))
}

/// The disk of the data folder, and that of the environments where it is another one.
pub(super) fn disks(config: &Config) -> Vec<Finding> {
    let fix = "free some space, or move the data folder with `ATELIER_DATA`";
    let mut findings = vec![disk(&config.data, fix)];
    let own = config.python.is_none() && config.worker_command.is_none();
    if own && device_of(&config.data) != device_of(&config.envs) {
        findings
            .push(disk(&config.envs, "free some space, or move the folder with `ATELIER_ENVS`"));
    }
    findings
}

fn disk(folder: &Path, fix: &str) -> Finding {
    let what = "disk";
    let at = folder.display();
    let Some(stat) = existing(folder).and_then(|there| statvfs(there).ok()) else {
        let seen = format!("the free space at {at} cannot be asked for");
        return Finding::note(what, seen, "look at it with `df`");
    };
    let free = Bytes(stat.f_bavail.saturating_mul(stat.f_frsize));
    if free < LITTLE_SPACE {
        return Finding::bad(what, format!("{free} free at {at}"), fix);
    }
    // A file system that does not count files says 0 of 0.
    if stat.f_files > 0 && stat.f_favail == 0 {
        let seen = format!("{free} free at {at}, and no room for one more file (see `df -i`)");
        return Finding::bad(what, seen, fix);
    }
    Finding::good(what, format!("{free} free at {at}"))
}

/// The folder itself, or the nearest one above it that is there.
fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

fn device_of(path: &Path) -> Option<u64> {
    existing(path)?.metadata().ok().map(|about| about.dev())
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let later = folder.path().join("not/yet");
        assert_eq!(data(&later).verdict, Verdict::Good);
        assert!(data(&later).seen.contains("will be made"));
        assert!(!folder.path().join("not").exists(), "looking makes nothing");
        assert_eq!(disk(&later, "").seen.replace(&*later.to_string_lossy(), "X"), {
            disk(folder.path(), "").seen.replace(&*folder.path().to_string_lossy(), "X")
        });
    }

    #[test]
    fn what_stands_in_the_way_of_the_data_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        files::write_atomic(&file, b"").unwrap();
        std::os::unix::fs::symlink(folder.path().join("gone"), &link).unwrap();
        for (path, word) in [
            (file.clone(), "no folder"),
            (file.join("below"), "no folder"),
            (link, "not there"),
            ("/proc/atelier".into(), "cannot be written"),
        ] {
            let finding = data(&path);
            // The rights of /proc bind only those who are not root.
            if path.starts_with("/proc") && rustix::process::geteuid().is_root() {
                continue;
            }
            assert_eq!(finding.verdict, Verdict::Bad, "{finding:?}");
            assert!(finding.seen.contains(word), "{finding:?}");
            assert!(finding.fix.unwrap().contains("--data"));
        }
    }

    #[test]
    fn a_folder_that_others_may_look_into_is_a_note() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |mode| {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            data(folder.path())
        };
        assert_eq!(mode(0o700).verdict, Verdict::Good);
        let open = mode(0o755);
        assert_eq!(open.verdict, Verdict::Note);
        assert!(open.seen.contains("755") && open.fix.unwrap().contains("chmod 700"));
    }
}
