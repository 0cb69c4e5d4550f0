//! How much RAM this process may count on: the machine's, or less where a control group says so.
//!
//! Reads `/proc/meminfo`, `/proc/self/cgroup` and the memory controller of version 2 or 1, from our
//! own group up to the root that we can see: a limit on any of them binds us.

use crate::files;
use atelier_protocol::Bytes;
use std::io;
use std::path::{Path, PathBuf};

/// RAM at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostMemory {
    /// The machine's memory or the tightest limit above us, whichever is smaller.
    pub total: Bytes,
    /// What could be had without swapping: free memory and cache that can be dropped, within the
    /// same limits.
    pub available: Bytes,
}

impl HostMemory {
    /// Reads the machine that we run on. Small files of the kernel only.
    pub fn read() -> io::Result<Self> {
        Self::read_under(Path::new("/"))
    }

    fn read_under(root: &Path) -> io::Result<Self> {
        let meminfo = files::read_to_string(&root.join("proc/meminfo"))?;
        let mut memory = parse_meminfo(&meminfo).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo gives no MemTotal")
        })?;
        // A system without control groups has no such file, and no limits either.
        let groups = files::read_to_string(&root.join("proc/self/cgroup")).unwrap_or_default();
        for folder in controller_folders(root, &groups) {
            if let Some(limit) = read_limit(&folder) {
                memory.total = memory.total.min(limit.bytes);
                memory.available = memory.available.min(limit.bytes.saturating_sub(limit.used));
            }
        }
        Ok(memory)
    }
}

fn parse_meminfo(text: &str) -> Option<HostMemory> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let kib = line.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix("kB")?;
            kib.trim().parse::<u64>().ok().map(|kib| Bytes(kib << 10))
        })
    };
    let total = field("MemTotal")?;
    // Kernels before 3.14 have no estimate; what is free is then the safe one.
    let available = field("MemAvailable").or_else(|| field("MemFree"))?;
    Some(HostMemory { total, available })
}

/// Folders of the memory controller that may limit us. In a container the path that the kernel
/// gives may not exist, since only our own part of the tree is mounted, at the root; so each step
/// up is tried and what is missing is skipped.
fn controller_folders(root: &Path, proc_self_cgroup: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in proc_self_cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let mount = match controllers {
            "" => root.join("sys/fs/cgroup"),
            _ if controllers.split(',').any(|c| c == "memory") => root.join("sys/fs/cgroup/memory"),
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        // A group outside of what is mounted is written with `..`.
        let inside = group.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        let steps = if inside { group.ancestors().collect() } else { vec![Path::new("")] };
        folders.extend(steps.into_iter().map(|step| mount.join(step)));
    }
    folders
}

struct Limit {
    bytes: Bytes,
    /// Without the page cache that the kernel would drop first.
    used: Bytes,
}

fn read_limit(folder: &Path) -> Option<Limit> {
    const VERSION_2: [&str; 3] = ["memory.max", "memory.current", "inactive_file"];
    const VERSION_1: [&str; 3] =
        ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
    let number = |name: &str| -> Option<u64> {
        files::read_to_string(&folder.join(name)).ok()?.trim().parse().ok()
    };
    [VERSION_2, VERSION_1].into_iter().find_map(|[limit, usage, droppable]| {
        let bytes = number(limit)?; // `max` is no number: no limit
        let used = number(usage).unwrap_or(0);
        let statistics = files::read_to_string(&folder.join("memory.stat")).unwrap_or_default();
        let cache = statistics
            .lines()
            .find_map(|line| line.strip_prefix(droppable)?.trim().parse::<u64>().ok())
            .unwrap_or(0);
        Some(Limit { bytes: Bytes(bytes), used: Bytes(used.saturating_sub(cache)) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(entries: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in entries {
            let path = root.path().join(path);
            files::create_dir_all(path.parent().unwrap()).unwrap();
            files::write_atomic(&path, text.as_bytes()).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:  16777216 kB\nMemFree: 1 kB\nMemAvailable:  8388608 kB\n");

    fn read(entries: &[(&str, &str)]) -> HostMemory {
        HostMemory::read_under(machine(entries).path()).unwrap()
    }

    #[test]
    fn without_limits_the_machine_counts() {
        let whole = HostMemory { total: Bytes::gib(16), available: Bytes::gib(8) };
        assert_eq!(read(&[MEMINFO]), whole);
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
        ];
        assert_eq!(read(&unlimited), whole);
        // Version 1 writes "no limit" as a number larger than any machine.
        let huge = [
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(read(&huge), whole);
    }

    #[test]
    fn the_tightest_limit_on_the_way_up_wins() {
        let memory = read(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max"),
            ("sys/fs/cgroup/a/memory.max", "4294967296"),
            ("sys/fs/cgroup/a/memory.current", "3221225472"),
            ("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 1073741824\n"),
        ]);
        assert_eq!(memory, HostMemory { total: Bytes::gib(4), available: Bytes::gib(2) });
    }

    #[test]
    fn version_1_in_a_container_is_found_at_the_root_of_its_mount() {
        let memory = read(&[
            MEMINFO,
            ("proc/self/cgroup", "7:cpu,cpuacct:/x\n4:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "inactive_file 0\ntotal_inactive_file 536870912\n",
            ),
        ]);
        let half = Bytes::mib(1536);
        assert_eq!(memory, HostMemory { total: Bytes::gib(2), available: half });
    }

    #[test]
    fn a_group_outside_of_the_mount_leaves_its_root() {
        let folders = controller_folders(Path::new("/"), "0::/../../other\nnonsense\n");
        assert_eq!(folders, [PathBuf::from("/sys/fs/cgroup/")]);
    }

    #[test]
    fn a_machine_that_gives_no_total_is_an_error() {
        let root = machine(&[("proc/meminfo", "MemFree: 3 kB\n")]);
        HostMemory::read_under(root.path()).expect_err("no MemTotal");
    }
}
