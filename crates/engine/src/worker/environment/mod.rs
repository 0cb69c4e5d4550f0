//! The Python environment in which workers run: makes, finds, repairs, describes and prunes it.
//!
//! All of it lies in one folder, `ENVS`, which several data folders and several versions of Atelier may share:
//!
//! ```text
//! ENVS/lock                  held while anything is installed or removed
//! ENVS/<16 hex digits>/      an environment, whole if `atelier.json` is in it
//! ENVS/source-<16 digits>/   the worker's source, as one binary brought it
//! ENVS/uv-<version>/         the installer, where the machine has none
//! ENVS/.part-*               unfinished or about to be removed
//! ```
//!
//! Nothing takes its final name before it is complete, and whatever is to be removed loses its name first. So an
//! interruption at any point leaves what was there or a `.part-` folder, which the next installation clears away.
//!
//! Never starts a worker, never imports torch, names no registry, reads no environment variables (tools inherit them).

mod disk;
mod error;
mod events;
mod holdings;
mod install;
mod lock;
mod notice;
mod python;
mod source;
mod uv;

#[cfg(test)]
mod tests;

pub use error::EnvironmentError;
pub use events::{InstallEvent, Step};
pub use holdings::{EnvironmentInfo, EnvironmentState, Holding, HoldingKind, Pruned};
pub use notice::{CardFacts, Notice, Why};

use crate::clock::Clock;
use crate::files;
use holdings::Standing;
use lock::Lock;
use serde::Serialize;
use source::Source;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

#[derive(Clone, Debug)]
pub struct EnvironmentConfig {
    /// Need not exist yet.
    pub envs: PathBuf,
    /// The user's own interpreter (`ATELIER_PYTHON`): nothing is installed then.
    pub python: Option<PathBuf>,
    /// Where Python and uv are looked for, in the form of `PATH`.
    pub path: OsString,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct InstallOptions {
    /// Install again even if there is a whole environment, and compare every file with its recorded hash.
    pub repair: bool,
}

/// What a worker is started with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Interpreter {
    pub python: PathBuf,
    /// For `PYTHONPATH`: the folder that holds the worker's package.
    pub pythonpath: PathBuf,
    pub origin: Origin,
    pub python_version: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// Made by us.
    Managed { name: String },
    /// The user's.
    External,
}

/// What [`Environments::ensure`] would do.
#[derive(Clone, PartialEq, Debug)]
pub enum Plan {
    /// Nothing: there is an interpreter.
    Ready {
        python: PathBuf,
        python_version: String,
    },
    Install(Box<Notice>),
}

/// A folder of the user's keeps the permissions that it has.
fn make_folder(envs: &Path) -> io::Result<()> {
    if envs.is_dir() { Ok(()) } else { files::create_private_dir(envs) }
}

/// The environments under one folder. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Environments {
    config: Arc<EnvironmentConfig>,
    clock: Clock,
    lock: Arc<Lock>,
    source: Arc<Source>,
    /// The user's interpreter, once it has been found fit.
    external: Arc<OnceLock<Interpreter>>,
}

impl Environments {
    #[must_use]
    pub fn new(config: EnvironmentConfig, clock: Clock) -> Self {
        Self::with_lock(config, clock, Lock::embedded())
    }
    fn with_lock(mut config: EnvironmentConfig, clock: Clock, lock: Lock) -> Self {
        // Tools and workers run in other folders than we do.
        for path in [Some(&mut config.envs), config.python.as_mut()].into_iter().flatten() {
            if let Ok(absolute) = std::path::absolute(&path) {
                *path = absolute;
            }
        }
        Self {
            config: Arc::new(config),
            clock,
            lock: Arc::new(lock),
            source: Arc::new(Source::embedded()),
            external: Arc::default(),
        }
    }

    /// The interpreter, if there is one that needs no installation. Some file look-ups, no process; the user's own
    /// interpreter is known only after [`Environments::ensure`].
    #[must_use]
    pub fn ready(&self) -> Option<Interpreter> {
        if self.config.python.is_some() {
            return self.external.get().cloned();
        }
        match self.standing() {
            Standing::Ready(whole) => match self.source.lay_out(&self.config.envs) {
                Ok(pythonpath) => Some(whole.interpreter(pythonpath)),
                Err(error) => {
                    tracing::warn!(%error, "the worker's source could not be laid out");
                    None
                }
            },
            Standing::Missing(_) => None,
        }
    }

    /// The interpreter as it is, for a trial that must leave `ENVS` alone: nothing is installed, and a source that was
    /// not laid out there yet is laid out in `elsewhere`. `None` when there is no whole environment.
    pub async fn borrow(&self, elsewhere: &Path) -> Result<Option<Interpreter>, EnvironmentError> {
        let pythonpath = || match self.source.laid_out(&self.config.envs) {
            Some(folder) => Ok(folder),
            None => self.source.lay_out(elsewhere),
        };
        if let Some(python) = &self.config.python {
            let found = python::inspect(python, &self.config.path, &self.lock).await?;
            return Ok(Some(Interpreter {
                python: python.clone(),
                pythonpath: pythonpath()?,
                origin: Origin::External,
                python_version: found.version(),
            }));
        }
        match self.standing() {
            Standing::Ready(whole) => Ok(Some(whole.interpreter(pythonpath()?))),
            Standing::Missing(_) => Ok(None),
        }
    }

    /// What `ensure` would do, without touching anything.
    pub async fn plan(
        &self,
        cards: &[CardFacts],
        options: InstallOptions,
    ) -> Result<Plan, EnvironmentError> {
        if let Some(python) = &self.config.python {
            let found = python::inspect(python, &self.config.path, &self.lock).await?;
            return Ok(Plan::Ready { python: python.clone(), python_version: found.version() });
        }
        match self.standing() {
            Standing::Ready(whole) if !options.repair => Ok(Plan::Ready {
                python: whole.python(),
                python_version: whole.marker.python_version,
            }),
            standing => Ok(Plan::Install(Box::new(self.intend(cards, standing).await?.notice))),
        }
    }

    /// The interpreter, made or repaired first if need be. Any number of processes may call this at once: one installs,
    /// the others wait and use its result. Safe to drop at any time.
    ///
    /// `events` must be read while this runs: all but [`InstallEvent::Bytes`] wait for room. None come when nothing had
    /// to be done, and no `Done` when another process did it.
    pub async fn ensure(
        &self,
        cards: &[CardFacts],
        options: InstallOptions,
        events: mpsc::Sender<InstallEvent>,
    ) -> Result<Interpreter, EnvironmentError> {
        if let Some(python) = &self.config.python {
            let found = python::inspect(python, &self.config.path, &self.lock).await?;
            let interpreter = Interpreter {
                python: python.clone(),
                pythonpath: self.source.lay_out(&self.config.envs)?,
                origin: Origin::External,
                python_version: found.version(),
            };
            let _ = self.external.set(interpreter.clone()); // the same one may have been set before
            return Ok(interpreter);
        }
        if !options.repair
            && let Some(interpreter) = self.ready()
        {
            return Ok(interpreter);
        }
        self.install(cards, options, &events).await
    }
}
