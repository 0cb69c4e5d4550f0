//! Runs a tool (an interpreter asked about itself, pip, uv) to its end and keeps what it said.
//!
//! Never starts a worker: those live in `process.rs`. A tool stays in our process group, so Ctrl-C in a terminal ends
//! it with us; it is killed when the future that waits for it is dropped or its time is over.
#![expect(clippy::disallowed_methods, reason = "the second place that may start a process")]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// What is kept of each stream; a tool that prints more loses the beginning.
const KEPT_BYTES: usize = 256 * 1024;

/// A program about to be run. It gets our environment variables and no input.
pub(super) struct Tool {
    program: PathBuf,
    command: Command,
    limit: Duration,
}

/// A tool that has ended, well or badly.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

#[derive(Debug, Error)]
pub(super) enum CommandError {
    #[error("failed to start {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("failed to listen to {}: {source}", program.display())]
    Listen { program: PathBuf, source: io::Error },
    #[error("{} did not end within {} s", program.display(), limit.as_secs())]
    TimedOut { program: PathBuf, limit: Duration },
}

impl Tool {
    pub(super) fn new(program: &Path, limit: Duration) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        Self { program: program.to_path_buf(), command, limit }
    }
    pub(super) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }
    pub(super) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }
    pub(super) fn without_env(mut self, names: &[&str]) -> Self {
        for name in names {
            self.command.env_remove(name);
        }
        self
    }
    pub(super) fn current_dir(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }
    /// Gives the tool an empty, locked file as its input. The lock belongs to the open file, so it lasts as long as the
    /// tool does, even if we are killed: nobody else touches what an orphaned tool is still writing.
    pub(super) fn holding(mut self, lock: &File) -> io::Result<Self> {
        self.command.stdin(Stdio::from(lock.try_clone()?));
        Ok(self)
    }
    pub(super) fn start(mut self) -> Result<Running, CommandError> {
        match self.command.spawn() {
            Ok(child) => Ok(Running { program: self.program, child, limit: self.limit }),
            Err(source) => Err(CommandError::Start { program: self.program, source }),
        }
    }
    pub(super) async fn run(self) -> Result<Finished, CommandError> {
        self.start()?.finish().await
    }
}

/// A tool at work. Dropping it kills it.
pub(super) struct Running {
    program: PathBuf,
    child: Child,
    limit: Duration,
}

impl Running {
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }
    pub(super) async fn finish(mut self) -> Result<Finished, CommandError> {
        let stdout = self.child.stdout.take().expect("piped above");
        let stderr = self.child.stderr.take().expect("piped above");
        let child = &mut self.child;
        let all = async { tokio::try_join!(tail(stdout), tail(stderr), child.wait()) };
        match tokio::time::timeout(self.limit, all).await {
            Ok(Ok((stdout, stderr, status))) => Ok(Finished { status, stdout, stderr }),
            Ok(Err(source)) => Err(CommandError::Listen { program: self.program, source }),
            Err(_) => Err(CommandError::TimedOut { program: self.program, limit: self.limit }),
        }
    }
}

async fn tail(mut stream: impl AsyncRead + Unpin) -> io::Result<String> {
    let mut kept = Vec::new();
    let mut block = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut block).await?;
        if count == 0 {
            return Ok(String::from_utf8_lossy(&kept).into_owned());
        }
        kept.extend_from_slice(&block[..count]);
        if kept.len() > 2 * KEPT_BYTES {
            kept.drain(..kept.len() - KEPT_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tool {
        Tool::new(Path::new("/bin/sh"), Duration::from_secs(30)).args(["-c", script])
    }

    #[tokio::test]
    async fn both_streams_and_the_status_come_back() {
        let done = shell("echo out; echo err >&2; exit 3").run().await.unwrap();
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(done.status.code(), Some(3));
    }

    #[tokio::test]
    async fn a_talkative_tool_is_heard_to_its_last_line() {
        let done = shell("yes abcdefg | head -c 3000000; echo; echo last").run().await.unwrap();
        assert!(done.stdout.ends_with("last\n"));
        assert!(done.stdout.len() <= 2 * KEPT_BYTES, "{}", done.stdout.len());
    }

    #[tokio::test]
    async fn a_tool_that_overstays_its_limit_is_named() {
        let tool = Tool::new(Path::new("/bin/sh"), Duration::from_millis(20));
        let error = tool.args(["-c", "exec sleep 60"]).run().await.unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_lock_outlives_us_while_the_tool_runs() {
        use rustix::fs::{FlockOperation, flock};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let ours = crate::files::create(&path).unwrap();
        flock(&ours, FlockOperation::NonBlockingLockExclusive).unwrap();
        let running = shell("exec sleep 60").holding(&ours).unwrap().start().unwrap();
        drop(ours);
        let other = crate::files::open(&path).unwrap();
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap_err();
        drop(running);
        tokio::task::spawn_blocking(move || flock(&other, FlockOperation::LockExclusive))
            .await
            .unwrap()
            .unwrap();
    }
}
