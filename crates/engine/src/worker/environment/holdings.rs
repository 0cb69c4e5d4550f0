//! What lies in the folder of environments: which one this binary uses, what each takes up, and what may go.

use super::events::Step;
use super::notice::Why;
use super::{EnvironmentError, Environments, Interpreter, Origin, disk, install, python, uv};
use crate::files;
use atelier_protocol::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// In every whole environment; written last.
pub(super) const MARKER: &str = "atelier.json";
pub(super) const PART: &str = ".part-";

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) lock_blake3: String,
    pub(super) python_version: String,
    /// The interpreter that the environment's own is a link to.
    pub(super) base_python: PathBuf,
    pub(super) uv_version: String,
    pub(super) created_at: String,
    pub(super) installed_bytes: Bytes,
    pub(super) seconds: f64,
    pub(super) versions: BTreeMap<String, String>,
}

/// An environment that this binary may use.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Whole {
    pub(super) folder: PathBuf,
    pub(super) marker: Marker,
}

impl Whole {
    pub(super) fn name(&self) -> String {
        name_of(&self.folder)
    }
    pub(super) fn python(&self) -> PathBuf {
        self.folder.join("bin/python")
    }
    pub(super) fn interpreter(self, pythonpath: PathBuf) -> Interpreter {
        Interpreter {
            python: self.python(),
            pythonpath,
            origin: Origin::Managed { name: self.name() },
            python_version: self.marker.python_version,
        }
    }
}

/// Whether this binary has an environment, or why not.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Standing {
    Ready(Whole),
    Missing(Why),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentState {
    Ready,
    Absent,
    /// An installation was interrupted; the next one repairs it.
    Interrupted,
    /// Some process is installing or removing just now.
    Busy,
    /// The user's own interpreter.
    External,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldingKind {
    Environment,
    Source,
    Uv,
    Leftover,
}

/// One folder of ours.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Holding {
    pub name: String,
    pub kind: HoldingKind,
    pub bytes: Bytes,
    /// What removing it frees: less than `bytes` while uv's cache holds the same files.
    pub exclusive_bytes: Bytes,
}

/// Everything about the environment that this binary uses, and what else lies beside it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct EnvironmentInfo {
    pub state: EnvironmentState,
    /// The folder of all environments.
    pub envs: PathBuf,
    pub path: Option<PathBuf>,
    pub python: Option<PathBuf>,
    pub python_version: Option<String>,
    pub uv_version: Option<String>,
    /// Of the packages that a worker cannot do without.
    pub versions: BTreeMap<String, String>,
    pub bytes: Option<Bytes>,
    pub installed_at: Option<String>,
    pub install_seconds: Option<f64>,
    pub lock_blake3: String,
    /// What is wrong with the user's own interpreter.
    pub problems: Vec<String>,
    /// Not used by this binary.
    pub others: Vec<Holding>,
}

/// What was removed.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Pruned {
    pub removed: Vec<Holding>,
    pub bytes: Bytes,
    /// Less than `bytes` while uv's cache holds the same files; `uv cache prune` frees those.
    pub freed: Bytes,
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_hash(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `None` for what is not ours: it is neither described nor removed.
fn kind(path: &Path) -> Option<HoldingKind> {
    let name = name_of(path);
    if !path.is_dir() {
        None
    } else if name.starts_with(PART) {
        Some(HoldingKind::Leftover)
    } else if name.strip_prefix("source-").is_some_and(is_hash) {
        Some(HoldingKind::Source)
    } else if name.starts_with("uv-") && path.join("pyvenv.cfg").exists() {
        Some(HoldingKind::Uv)
    } else if is_hash(&name) && (path.join("pyvenv.cfg").exists() || path.join(MARKER).exists()) {
        Some(HoldingKind::Environment)
    } else {
        None
    }
}

fn read_marker(folder: &Path) -> Option<Marker> {
    serde_json::from_slice(&files::read(&folder.join(MARKER)).ok()?).ok()
}

impl Environments {
    /// Our folders; empty when there is no folder for them yet.
    pub(super) fn holdings(&self) -> Vec<(PathBuf, HoldingKind)> {
        let entries = files::read_dir(&self.config.envs).unwrap_or_default();
        entries.into_iter().filter_map(|path| Some((path.clone(), kind(&path)?))).collect()
    }

    /// Looks for an environment made from our lock, whichever Python or uv made it: an update of those is no reason to
    /// download gigabytes again. Several can be there; the newest wins.
    pub(super) fn standing(&self) -> Standing {
        let mut newest: Option<Whole> = None;
        let (mut changed, mut interrupted, mut other) = (false, false, false);
        for (folder, kind) in self.holdings() {
            match kind {
                HoldingKind::Environment => match read_marker(&folder) {
                    None => interrupted = true,
                    Some(marker) if marker.lock_blake3 != self.lock.blake3 => other = true,
                    Some(marker) => {
                        let base = folder.join("bin/python").canonicalize();
                        if base.is_ok_and(|base| base == marker.base_python) {
                            let whole = Whole { folder, marker };
                            let is_newer = newest.as_ref().is_none_or(|known| {
                                known.marker.created_at <= whole.marker.created_at
                            });
                            if is_newer {
                                newest = Some(whole);
                            }
                        } else {
                            changed = true;
                        }
                    }
                },
                HoldingKind::Leftover => interrupted = true,
                HoldingKind::Source | HoldingKind::Uv => {}
            }
        }
        match newest {
            Some(whole) => Standing::Ready(whole),
            None if changed => Standing::Missing(Why::PythonChanged),
            None if interrupted => Standing::Missing(Why::Interrupted),
            None if other => Standing::Missing(Why::OtherPackages),
            None => Standing::Missing(Why::First),
        }
    }

    /// Everything about the current environment. Asks the user's own interpreter if there is one; measures the folders
    /// that are not in use, which takes some tenths of a second each.
    pub async fn info(&self) -> EnvironmentInfo {
        let mut info = EnvironmentInfo {
            state: EnvironmentState::Absent,
            envs: self.config.envs.clone(),
            path: None,
            python: None,
            python_version: None,
            uv_version: None,
            versions: BTreeMap::new(),
            bytes: None,
            installed_at: None,
            install_seconds: None,
            lock_blake3: self.lock.blake3.clone(),
            problems: Vec::new(),
            others: Vec::new(),
        };
        if let Some(python) = &self.config.python {
            info.state = EnvironmentState::External;
            info.python = Some(python.clone());
            match python::inspect(python, &self.config.path, &self.lock).await {
                Ok(found) => {
                    info.python_version = Some(found.version());
                    info.versions = found.versions();
                }
                Err(EnvironmentError::ExternalIncomplete { problems, .. }) => {
                    info.problems = problems;
                }
                Err(error) => info.problems = vec![error.to_string()],
            }
        } else {
            match self.standing() {
                Standing::Ready(whole) => {
                    info.state = EnvironmentState::Ready;
                    info.python = Some(whole.python());
                    info.path = Some(whole.folder);
                    info.python_version = Some(whole.marker.python_version);
                    info.uv_version = Some(whole.marker.uv_version);
                    info.versions = whole.marker.versions;
                    info.bytes = Some(whole.marker.installed_bytes);
                    info.installed_at = Some(whole.marker.created_at);
                    info.install_seconds = Some(whole.marker.seconds);
                }
                Standing::Missing(_) if install::is_locked(&self.config.envs) => {
                    info.state = EnvironmentState::Busy;
                }
                Standing::Missing(Why::Interrupted) => info.state = EnvironmentState::Interrupted,
                Standing::Missing(
                    Why::First | Why::OtherPackages | Why::PythonChanged | Why::Repair,
                ) => {}
            }
        }
        let unused = self.unused(true);
        info.others = tokio::task::spawn_blocking(move || {
            unused.into_iter().map(|(path, kind)| measure(&path, kind)).collect()
        })
        .await
        .expect("measuring does not panic");
        info
    }

    /// Removes our folders that this binary does not use; all of them without `keep_current`. A worker that runs in one
    /// of them, for another version of Atelier, is not asked. Waits for an installation that is going on.
    pub async fn prune(&self, keep_current: bool) -> Result<Pruned, EnvironmentError> {
        if !self.config.envs.exists() {
            return Ok(Pruned::default());
        }
        let lock_file = self.take_lock(None).await?;
        let unused = self.unused(keep_current);
        let removed = tokio::task::spawn_blocking(move || {
            let _held = lock_file;
            unused
                .into_iter()
                .map(|(path, kind)| {
                    let holding = measure(&path, kind);
                    remove(&path).map(|()| holding)
                })
                .collect::<io::Result<Vec<_>>>()
        })
        .await
        .map_err(|source| EnvironmentError::Command {
            step: Step::Clear,
            source: Box::new(source),
        })??;
        let sum = |f: fn(&Holding) -> u64| Bytes(removed.iter().map(f).sum());
        let (bytes, freed) = (sum(|h| h.bytes.0), sum(|h| h.exclusive_bytes.0));
        Ok(Pruned { removed, bytes, freed })
    }

    fn unused(&self, keep_current: bool) -> Vec<(PathBuf, HoldingKind)> {
        let mut kept = Vec::new();
        if keep_current {
            if self.config.python.is_none()
                && let Standing::Ready(whole) = self.standing()
            {
                kept.push(whole.folder);
            }
            kept.push(self.source.folder(&self.config.envs));
            kept.push(uv::private_folder(&self.config.envs, &self.lock));
        }
        let mut holdings = self.holdings();
        holdings.retain(|(path, _)| !kept.contains(path));
        holdings
    }
}

fn measure(path: &Path, kind: HoldingKind) -> Holding {
    let usage = disk::usage(path);
    Holding { name: name_of(path), kind, bytes: usage.bytes, exclusive_bytes: usage.exclusive }
}

/// Takes the name away first: half a removal must not look like an environment.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    if name_of(path).starts_with(PART) {
        return files::remove_dir_all(path);
    }
    let nameless = path.with_file_name(format!("{PART}removed-{}", uuid::Uuid::now_v7().simple()));
    files::rename(path, &nameless)?;
    files::remove_dir_all(&nameless)
}
