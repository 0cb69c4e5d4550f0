//! Finds an interpreter to make environments with, and asks interpreters what they are and have.

use super::EnvironmentError;
use super::lock::{Lock, MIN_TORCH, NEEDED, PYTHON_MINORS};
use crate::worker::command::Tool;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PROBE: &str = include_str!("probe.py");

/// Newest first: the newest that the lock was resolved for is the fastest.
const NAMES: [&str; 4] = ["python3.13", "python3.12", "python3.11", "python3"];

/// An interpreter starts in 20 ms; a shim on a cold network disk takes seconds.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// What an interpreter says about itself.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(super) struct Python {
    /// The interpreter itself, where a shim was asked.
    pub(super) executable: PathBuf,
    version: (u32, u32, u32),
    implementation: String,
    free_threaded: bool,
    /// Whether it can make environments without help; Debian splits that off.
    pub(super) has_venv: bool,
    packages: BTreeMap<String, Option<String>>,
}

impl Python {
    pub(super) fn version(&self) -> String {
        format!("{}.{}.{}", self.version.0, self.version.1, self.version.2)
    }
    pub(super) fn minor(&self) -> u32 {
        self.version.1
    }
    /// Versions of the packages that were asked for and are there.
    pub(super) fn versions(&self) -> BTreeMap<String, String> {
        let there = self.packages.iter();
        there.filter_map(|(name, v)| Some((name.clone(), v.clone()?))).collect()
    }
    /// Why workers cannot run in it, if so.
    fn objection(&self) -> Option<String> {
        if self.version.0 != 3 || !PYTHON_MINORS.contains(&self.version.1) {
            Some(format!("is Python {}, not 3.11 to 3.13", self.version()))
        } else if self.implementation != "cpython" {
            Some(format!("is {}, not CPython", self.implementation))
        } else if self.free_threaded {
            Some("is a free-threaded build, for which the packages are not made".into())
        } else {
            None
        }
    }
}

/// All programs of this name on `path`, in its order.
pub(super) fn on_path(name: &str, path: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .filter(|file| {
            file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
        .collect()
}

/// Asks an interpreter about itself and `packages`. The error is a phrase that follows the interpreter's path.
///
/// `isolated`: without the user's own packages and variables, as the interpreters of our environments are asked.
pub(super) async fn ask(
    python: &Path,
    path: &OsStr,
    packages: &[&str],
    isolated: bool,
) -> Result<Python, String> {
    let flags: &[&str] = if isolated { &["-I", "-c", PROBE] } else { &["-c", PROBE] };
    let finished = Tool::new(python, PROBE_LIMIT)
        .args(flags)
        .args(packages)
        .env("PATH", path)
        .without_env(&["PYTHONPATH", "PYTHONHOME"])
        .run()
        .await
        .map_err(|error| format!("does not run: {error}"))?;
    if !finished.status.success() {
        let said = finished.stderr.trim();
        let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        return Err(format!("does not run: {}", line.trim()));
    }
    let line = finished.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|_| "does not answer as a Python does".to_string())
}

/// The first interpreter that will do. `needs_venv`: there is no uv, so it must make the first environment itself.
pub(super) async fn find(path: &OsStr, needs_venv: bool) -> Result<Python, EnvironmentError> {
    let mut found = Vec::new();
    let mut without_venv = None;
    for candidate in NAMES.iter().flat_map(|name| on_path(name, path)) {
        match ask(&candidate, path, &[], true).await {
            Ok(python) => match python.objection() {
                None if python.has_venv || !needs_venv => return Ok(python),
                None => without_venv = without_venv.or(Some(python)),
                Some(objection) => found.push(format!("{} {objection}", candidate.display())),
            },
            Err(reason) => found.push(format!("{} {reason}", candidate.display())),
        }
    }
    Err(match without_venv {
        Some(python) => {
            EnvironmentError::VenvMissing { version: python.version(), python: python.executable }
        }
        None => EnvironmentError::PythonMissing { found },
    })
}

/// Asks the user's interpreter whether workers can run in it; reports everything that is missing at once.
pub(super) async fn inspect(
    python: &Path,
    path: &OsStr,
    lock: &Lock,
) -> Result<Python, EnvironmentError> {
    let unusable = |reason| EnvironmentError::ExternalUnusable { python: python.into(), reason };
    if !python.exists() {
        return Err(unusable(format!("{} does not exist", python.display())));
    }
    let answer = ask(python, path, &NEEDED, false)
        .await
        .map_err(|reason| unusable(format!("{} {reason}", python.display())))?;
    let problems = problems(&answer, &lock.needed());
    if problems.is_empty() {
        Ok(answer)
    } else {
        Err(EnvironmentError::ExternalIncomplete { python: python.into(), problems })
    }
}

fn problems(python: &Python, pins: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut problems: Vec<String> =
        python.objection().map(|objection| format!("it {objection}")).into_iter().collect();
    for name in NEEDED {
        let tested = match pins.get(name) {
            Some(versions) => {
                format!(" (tested: {})", Vec::from_iter(versions.iter().cloned()).join(", "))
            }
            None => String::new(),
        };
        match python.packages.get(name).cloned().flatten() {
            None => problems.push(format!("{name} is missing{tested}")),
            Some(version) if name == "torch" && release(&version) < MIN_TORCH => {
                let (major, minor) = MIN_TORCH;
                problems.push(format!(
                    "torch {version} is older than {major}.{minor}, the oldest that works{tested}"
                ));
            }
            Some(_) => {}
        }
    }
    problems
}

/// Major and minor number of a version such as `2.11.0+cu130`. What cannot be read counts as old.
pub(super) fn release(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| {
        part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
    });
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(version: (u32, u32, u32), packages: &[(&str, &str)]) -> Python {
        Python {
            executable: "/usr/bin/python3".into(),
            version,
            implementation: "cpython".into(),
            free_threaded: false,
            has_venv: true,
            packages: packages.iter().map(|(n, v)| (n.to_string(), Some(v.to_string()))).collect(),
        }
    }

    #[test]
    fn every_problem_of_the_users_interpreter_is_told_at_once_with_the_tested_version() {
        let old = python(
            (3, 10, 4),
            &[("torch", "2.9.1+cu128"), ("numpy", "2.0.0"), ("diffusers", "0.42.1")],
        );
        let told = problems(&old, &Lock::embedded().needed());
        assert_eq!(told.len(), 6, "{told:#?}");
        let told = told.join("\n");
        for words in [
            "Python 3.10.4, not 3.11 to 3.13",
            "torch 2.9.1+cu128 is older than 2.11",
            "transformers is missing (tested: ",
            "msgspec is missing (tested: ",
            "google-crc32c is missing (tested: ",
            "safetensors is missing (tested: ",
        ] {
            assert!(told.contains(words), "{words} not in {told}");
        }
    }

    #[test]
    fn torch_two_eleven_is_newer_than_two_nine() {
        assert_eq!(release("2.11.0+cu130"), (2, 11));
        assert!(release("2.9.1") < release("2.11.0a0"));
        assert_eq!(release("nightly"), (0, 0));
    }

    #[test]
    fn free_threaded_and_other_pythons_are_refused_with_a_reason() {
        let mut odd = python((3, 13, 1), &[]);
        assert_eq!(odd.objection(), None);
        odd.free_threaded = true;
        assert!(odd.objection().unwrap().contains("free-threaded"));
        odd.implementation = "pypy".into();
        assert!(odd.objection().unwrap().contains("pypy"));
    }
}
