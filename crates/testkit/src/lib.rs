//! Doubles and harness for tests: a worker that follows a script, and a node in a folder of its own.
//!
//! Depends on the protocol only, so that engine and server may both use it. Waits for what is observable, never for time to
//! pass.

mod scripted;

pub use scripted::{Script, ScriptedWorker};

use std::path::PathBuf;

/// The repository's folder, for tests that use what is checked in.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the source tree")
}

/// The folder that holds the demo model.
#[must_use]
pub fn models() -> PathBuf {
    repository().join("models")
}
