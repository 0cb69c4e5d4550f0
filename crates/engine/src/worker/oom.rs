//! Whether the kernel's out-of-memory killer has been at work: the counter that it keeps for the whole machine, which
//! also counts kills within control groups.

use crate::files;
use std::path::{Path, PathBuf};

/// Remembers the count, so that a later look says whether there were kills in between.
#[derive(Clone, Debug)]
pub(super) struct OomWatch {
    path: PathBuf,
    seen: Option<u64>,
}

impl OomWatch {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: count(path) }
    }

    /// Whether somebody was killed since the last call. Not known counts as no.
    pub(super) fn killed_since(&mut self) -> bool {
        let now = count(&self.path);
        let killed = matches!((self.seen, now), (Some(before), Some(now)) if now > before);
        self.seen = now;
        killed
    }
}

fn count(path: &Path) -> Option<u64> {
    let text = files::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_between_two_looks_is_seen_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmstat");
        files::write_atomic(&path, b"nr_free_pages 5\noom_kill 3\n").unwrap();
        let mut watch = OomWatch::new(&path);
        assert!(!watch.killed_since());
        files::write_atomic(&path, b"oom_kill 4\n").unwrap();
        assert!(watch.killed_since());
        assert!(!watch.killed_since());
    }

    #[test]
    fn a_machine_without_the_counter_never_says_yes() {
        let mut watch = OomWatch::new(Path::new("/nowhere"));
        assert!(!watch.killed_since());
    }
}
