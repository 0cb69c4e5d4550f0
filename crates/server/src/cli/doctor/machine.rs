//! The machine: cores and memory that are left to us, shared memory, the clock.

use super::finding::Finding;
use atelier_engine::clock::Clock;
use atelier_engine::device::HostMemory;
use atelier_engine::files;
use atelier_engine::worker::SlotFile;
use atelier_protocol::Bytes;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// PyTorch's libraries take 0.75 GiB before the first model; the rest is for a small one.
const LEAST_MEMORY: Bytes = Bytes::mib(1536);
/// No clock was right before this program was written.
const FIRST_YEAR: i16 = 2025;
const LAST_YEAR: i16 = 2100;
/// Files on other machines' disks are stamped by other clocks.
const AHEAD: Duration = Duration::from_secs(5 * 60);

pub(super) fn cores_and_memory() -> Finding {
    let (what, limits) = ("machine", "give it more through the limits of its container or service");
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let text = |path: &str| files::read_to_string(Path::new(path)).unwrap_or_default();
    let in_all = text("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count();
    let cores = match in_all {
        all if all > cores => format!("{cores} of {all} cores (limited)"),
        _ => format!("{cores} cores"),
    };
    let memory = match HostMemory::read() {
        Ok(memory) => memory,
        Err(error) => {
            let fix = "mount /proc; without it no memory can be promised to a model";
            return Finding::bad(what, format!("{cores}; {error}"), fix);
        }
    };
    let HostMemory { total, available } = memory;
    let seen = format!("{cores}, {available} of {total} memory available");
    if total < LEAST_MEMORY {
        return Finding::bad(what, format!("{seen}; a worker needs {LEAST_MEMORY}"), limits);
    }
    if available < LEAST_MEMORY {
        let seen = format!("{seen}; a worker needs {LEAST_MEMORY}");
        return Finding::note(what, seen, "close other programs");
    }
    Finding::good(what, seen)
}

/// Pixels pass through sealed memory files that workers open by path.
pub(super) fn shared_memory() -> Finding {
    let what = "shared memory";
    let tried = SlotFile::new(1 << 20).and_then(|slot| {
        let path = slot.describe().path;
        let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
        file.write_all(&[1; 4096])
    });
    match tried {
        Ok(()) => Finding::good(what, "sealed memory files work"),
        Err(error) => Finding::bad(
            what,
            format!("a sealed memory file cannot be made or opened by its path: {error}"),
            "allow `memfd_create` in the container's seccomp profile, and mount /proc",
        ),
    }
}

pub(super) fn clock(clock: &Clock, data: &Path) -> Finding {
    let now = clock.now();
    let newest = files::read_dir(data).unwrap_or_default().into_iter().filter_map(|path| {
        let changed = files::metadata(&path).ok()?.modified().ok()?;
        Some((changed, path))
    });
    judge_clock(now, newest.max())
}

fn judge_clock(now: jiff::Timestamp, newest: Option<(SystemTime, PathBuf)>) -> Finding {
    let (what, fix) = ("clock", "set the clock, for example with `timedatectl set-ntp true`");
    let year = now.to_zoned(jiff::tz::TimeZone::UTC).year();
    let shown = format!("{:.0}", now);
    if !(FIRST_YEAR..=LAST_YEAR).contains(&year) {
        return Finding::note(what, format!("it is said to be {shown}"), fix);
    }
    if let Some((changed, path)) = newest
        && changed > SystemTime::from(now) + AHEAD
    {
        let later = jiff::Timestamp::try_from(changed).map(|at| format!("{at:.0}"));
        let seen = format!(
            "it is said to be {shown}, but {} was changed at {}",
            path.display(),
            later.unwrap_or_else(|_| "a later time".to_owned())
        );
        return Finding::note(what, seen, fix);
    }
    Finding::good(what, shown)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn this_machine_has_cores_memory_and_memory_files() {
        assert!(cores_and_memory().seen.contains("cores"));
        assert_eq!(shared_memory().verdict, Verdict::Good);
    }

    #[test]
    fn a_clock_before_its_program_or_behind_its_files_is_noticed() {
        let at = |text: &str| -> jiff::Timestamp { text.parse().unwrap() };
        let file = |text: &str| Some((SystemTime::from(at(text)), PathBuf::from("/d/atelier.db")));
        let now = at("2026-03-01T12:00:00Z");
        assert_eq!(judge_clock(now, None).verdict, Verdict::Good);
        assert_eq!(judge_clock(now, file("2026-03-01T12:04:00Z")).verdict, Verdict::Good);
        let behind = judge_clock(now, file("2026-03-02T00:00:00Z"));
        assert_eq!(behind.verdict, Verdict::Note);
        assert!(behind.seen.contains("/d/atelier.db was changed at 2026-03-02"), "{behind:?}");
        for wrong in ["1970-01-01T00:01:00Z", "2110-01-01T00:00:00Z"] {
            let finding = judge_clock(at(wrong), None);
            assert_eq!(finding.verdict, Verdict::Note, "{wrong}");
            assert!(finding.fix.unwrap().contains("set the clock"));
        }
    }
}
