//! The scripted worker: a real process that speaks the protocol and misbehaves on command.

use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What one start of the worker does; a worker without faults when nothing is set.
#[derive(Clone, Debug, Default)]
pub struct Script(Map<String, Value>);

impl Script {
    /// A worker that behaves.
    #[must_use]
    pub fn good() -> Self {
        Self::default()
    }
    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }
    /// Milliseconds a denoise step.
    #[must_use]
    pub fn step_ms(self, ms: u32) -> Self {
        self.with("step_ms", ms)
    }
    /// Milliseconds that the imports take.
    #[must_use]
    pub fn import_ms(self, ms: u32) -> Self {
        self.with("import_ms", ms)
    }
    /// Ends itself with SIGKILL at this step of every run.
    #[must_use]
    pub fn crash_at(self, step: u32) -> Self {
        self.with("crash_at", step)
    }
    /// The signal of [`Self::crash_at`]; SIGSEGV (11) is a worker's own doing, SIGKILL (9) somebody else's.
    #[must_use]
    pub fn crash_signal(self, signal: i32) -> Self {
        self.with("crash_signal", signal)
    }
    /// Holds its interpreter at the first step of every run for this long, after declaring that it compiles.
    #[must_use]
    pub fn compile_ms(self, ms: u32) -> Self {
        self.with("compile_ms", ms)
    }
    /// Says after every run that it holds this much memory, and so much more after each.
    #[must_use]
    pub fn grows_by_mib(self, mib: u64) -> Self {
        self.with("grows_by_mib", mib)
    }
    /// Stops for good at this step of every run.
    #[must_use]
    pub fn freeze_at(self, step: u32) -> Self {
        self.with("freeze_at", step)
    }
    /// Sends bytes that are no message, and a line of 2 MiB, at this step.
    #[must_use]
    pub fn garbage_at(self, step: u32) -> Self {
        self.with("garbage_at", step)
    }
    /// Takes no notice of a cancel.
    #[must_use]
    pub fn deaf_to_cancel(self) -> Self {
        self.with("deaf_to_cancel", true)
    }
    /// Says that work is done after it was acknowledged as cancelled.
    #[must_use]
    pub fn late_after_cancel(self) -> Self {
        self.with("late_after_cancel", true)
    }
    /// Ignores SIGTERM.
    #[must_use]
    pub fn deaf_to_sigterm(self) -> Self {
        self.with("deaf_to_sigterm", true)
    }
    /// Sends a checksum that is wrong.
    #[must_use]
    pub fn wrong_crc(self) -> Self {
        self.with("wrong_crc", true)
    }
    /// Fails every run with this code.
    #[must_use]
    pub fn fail(self, code: &str) -> Self {
        self.with("fail", code)
    }
    /// `crash` or `fail` at every load.
    #[must_use]
    pub fn load(self, how: &str) -> Self {
        self.with("load", how)
    }
    /// `none`, `garbage`, `exit` or `wrong_version` instead of a proper start.
    #[must_use]
    pub fn hello(self, how: &str) -> Self {
        self.with("hello", how)
    }
}

/// A program to start in a worker's place.
#[derive(Debug)]
pub struct ScriptedWorker {
    command: Vec<String>,
    count: PathBuf,
    _folder: tempfile::TempDir,
}

impl ScriptedWorker {
    /// One script a start, the last one for all that follow.
    #[must_use]
    pub fn new(scripts: impl IntoIterator<Item = Script>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let count = folder.path().join("starts");
        let scripts: Vec<_> = scripts.into_iter().map(|script| Value::Object(script.0)).collect();
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("workers/scripted.py");
        let command = vec![
            "python3".to_owned(),
            program.display().to_string(),
            json!(scripts).to_string(),
            "--count".to_owned(),
            count.display().to_string(),
        ];
        Self { command, count, _folder: folder }
    }

    /// Program and arguments.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        self.command.clone()
    }

    /// How often it was started.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the file may not be there yet, which is no error"
    )]
    pub fn starts(&self) -> u64 {
        std::fs::metadata(&self.count).map_or(0, |meta| meta.len())
    }
}
