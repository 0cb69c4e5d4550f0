//! Settings: where they come from, what they may be, and what the rest of the program gets.
//!
//! Typed twice: what was written ([`RawConfig`]) becomes what is needed ([`Config`]) in one function, `resolve`. Nothing
//! else in the program reads the environment or a settings file, and nothing here opens a socket or a store.

mod environment;
mod error;
mod file;
mod raw;
mod resolve;
mod show;

pub use environment::{CONFIG_VARIABLE, Environment, NODE_VARIABLE, Places, ProcessEnvironment};
pub use error::{ConfigError, Origin, Problem};
pub use raw::{KEYS, Key, Kind, RawConfig, RawLog, RawWorker};
pub use resolve::{Row, Settings, load};
pub use show::meaning;

use atelier_engine::node::{NodeConfig, SparePolicy};
use atelier_protocol::Bytes;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// The defaults, and their documentation.
pub const DEFAULT_CONFIG: &str = include_str!("default-config.toml");

/// Every setting, checked, with its default filled in.
#[derive(Clone, Debug)]
pub struct Config {
    pub data: PathBuf,
    pub envs: PathBuf,
    pub listen: SocketAddr,
    pub model_folders: Vec<PathBuf>,
    pub default_model: Option<String>,
    pub pictures: PathBuf,
    pub queue_limit: u32,
    pub max_attempts: u32,
    pub max_body_bytes: u64,
    pub max_wait: Duration,
    pub idle_exit: Option<Duration>,
    pub warm_start: bool,
    pub python: Option<PathBuf>,
    /// Another program in the worker's place.
    pub worker_command: Option<Vec<String>>,
    pub spare: SparePolicy,
    pub recycle_growth: Option<Bytes>,
    /// The `PATH` of this process.
    pub path: OsString,
    pub log: LogConfig,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogConfig {
    pub level: LevelFilter,
    pub format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    Text,
    Json,
}

/// What comes from the command line.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// Flags that are settings.
    pub raw: RawConfig,
}

impl Config {
    /// What the engine is started with. `program` is the path of this executable, beside which an installation keeps the
    /// demo model.
    #[must_use]
    pub fn node(&self, program: Option<&Path>) -> NodeConfig {
        let mut model_folders = self.model_folders.clone();
        model_folders.extend(shipped_models(program).filter(|f| !self.model_folders.contains(f)));
        NodeConfig {
            data: self.data.clone(),
            envs: self.envs.clone(),
            python: self.python.clone(),
            worker_command: self.worker_command.clone(),
            path: self.path.clone(),
            model_folders,
            default_model: self.default_model.clone(),
            queue_limit: self.queue_limit,
            max_attempts: self.max_attempts,
            max_body_bytes: self.max_body_bytes,
            idle_exit: self.idle_exit,
            warm_start: self.warm_start,
            spare: self.spare,
            recycle_growth: self.recycle_growth,
        }
    }
}

/// The folder of models that came with this program: beside an installed one, else in the source tree that it was built
/// from. Only the first that is there, so that no model is listed twice.
fn shipped_models(program: Option<&Path>) -> Option<PathBuf> {
    let installed = program
        .and_then(Path::parent)
        .and_then(Path::parent)
        .map(|prefix| prefix.join("share/atelier/models"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?.join("models");
    [installed, Some(source)].into_iter().flatten().find(|folder| folder.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;
    use atelier_engine::files;

    #[test]
    fn models_beside_an_installed_program_win_over_those_of_the_source_tree() {
        let prefix = tempfile::tempdir().unwrap();
        let program = prefix.path().join("bin/atelier");
        let source = shipped_models(Some(&program)).unwrap();
        assert!(source.ends_with("models") && !source.starts_with(prefix.path()));
        let share = prefix.path().join("share/atelier/models");
        files::create_dir_all(&share).unwrap();
        assert_eq!(shipped_models(Some(&program)), Some(share));
    }
}
