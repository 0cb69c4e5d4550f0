//! The node that a command talks to: the one that was named, the one that serves the data folder, or one that is started
//! for the call.

use super::Context;
use super::client::Client;
use crate::serve::{lock, node_file};
use atelier_engine::files;
use atelier_protocol::http::NodeInfo;
use atelier_protocol::{ErrorBody, ErrorCode};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest time that a node may take from its start to its answer.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest time that a node may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two looks at a process or a file that cannot be waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// A node started from a terminal stays this long without work, so that the second picture takes seconds.
const STAY_IDLE_S: u64 = 300;
/// One started for a single call ends by itself after this when the call could not end it.
const ORPHAN_IDLE_S: u64 = 30;
/// The log of started nodes is put aside when it is larger.
const LOG_LIMIT_BYTES: u64 = 8 << 20;

/// What a started node is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stay {
    /// It serves the next calls too.
    ForAWhile,
    /// It ends with the call.
    ForThisCall,
}

/// A connection to a node, and the node itself when it was started here.
pub(super) struct Link<'a> {
    context: &'a Context,
    client: Client,
    start: Option<Stay>,
    started: Option<Child>,
}

impl<'a> Link<'a> {
    /// To a node that runs already.
    pub(super) fn open(context: &'a Context) -> Result<Self, ErrorBody> {
        let client = match &context.node {
            Some(address) => Client::new(address)?,
            None => running(&context.settings.config.data).ok_or_else(|| none_runs(context))?,
        };
        Ok(Self { context, client, start: None, started: None })
    }

    /// To a node that runs already, or to one started for this call.
    pub(super) fn open_or_start(context: &'a Context, stay: Stay) -> Result<Self, ErrorBody> {
        if let Some(address) = &context.node {
            let client = Client::new(address)?;
            return Ok(Self { context, client, start: None, started: None });
        }
        let (client, started) = find_or_start(context, stay)?;
        Ok(Self { context, client, start: Some(stay), started })
    }

    pub(super) fn context(&self) -> &Context {
        self.context
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Finds the node again after it went away; starts another where this call may.
    pub(super) fn renew(&mut self) -> Result<(), ErrorBody> {
        if self.context.node.is_some() {
            return self.client.get::<NodeInfo>("/v1/node").map(|_| ());
        }
        if let Some(stay) = self.start {
            let (client, started) = find_or_start(self.context, stay)?;
            self.client = client;
            self.started = started.or(self.started.take());
        } else {
            let data = &self.context.settings.config.data;
            self.client = running(data).ok_or_else(|| none_runs(self.context))?;
        }
        Ok(())
    }

    /// Ends a node that was started for this call only, unless somebody else found work for it.
    pub(super) fn finish(mut self) {
        let (Some(mut child), Some(Stay::ForThisCall)) = (self.started.take(), self.start) else {
            return;
        };
        let in_use = self
            .client
            .get::<NodeInfo>("/v1/node")
            .is_ok_and(|info| info.pid == child.id() && info.jobs_queued + info.jobs_running > 0);
        if in_use {
            return; // it ends by itself when idle
        }
        stop(&mut child);
    }
}

fn stop(child: &mut Child) {
    // Not waited for yet, so the pid is still this child's.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM); // it may have ended already
    }
    let deadline = Instant::now() + STOP_LIMIT;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(LOOK_AGAIN),
            Ok(Some(_)) | Err(_) => return,
        }
    }
}

fn none_runs(context: &Context) -> ErrorBody {
    let data = context.settings.config.data.display();
    ErrorBody::new(ErrorCode::NodeUnreachable, format!("no node serves the data folder {data}"))
}

/// The node that serves a data folder, if it answers as the one that its file names.
fn running(data: &Path) -> Option<Client> {
    let file = node_file::read(data)?;
    let client = Client::new(&file.address).ok()?;
    let info: NodeInfo = client.get("/v1/node").ok()?;
    (info.boot_id == file.boot_id).then_some(client)
}

fn find_or_start(context: &Context, stay: Stay) -> Result<(Client, Option<Child>), ErrorBody> {
    let data = &context.settings.config.data;
    let deadline = Instant::now() + START_LIMIT;
    let mut starting: Option<Starting> = None;
    loop {
        if let Some(client) = running(data) {
            // Another call may have been faster; then ours ends by itself, since the data folder is taken.
            let ours = starting.filter(|starting| {
                node_file::read(data).is_some_and(|file| file.pid == starting.child.id())
            });
            return Ok((client, ours.map(|starting| starting.child)));
        }
        if Instant::now() > deadline {
            let log = log_path(data);
            let seconds = START_LIMIT.as_secs();
            let message =
                format!("no node answered within {seconds} s; its log is {}", log.display());
            return Err(ErrorBody::new(ErrorCode::NodeUnreachable, message));
        }
        match &mut starting {
            None if lock::is_held(data) => {} // one is starting or ending
            None => starting = Some(Starting::new(context, stay)?),
            Some(running) => {
                if let Ok(Some(_)) = running.child.try_wait() {
                    if !lock::is_held(data) {
                        return Err(running.error());
                    }
                    starting = None; // another was faster, or one is still ending
                }
            }
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn log_path(data: &Path) -> PathBuf {
    data.join("logs").join("node.log")
}

/// A node between its start and its first answer.
struct Starting {
    child: Child,
    log: PathBuf,
    /// Where this node's part of the log begins.
    log_start: u64,
}

impl Starting {
    fn new(context: &Context, stay: Stay) -> Result<Self, ErrorBody> {
        let data = &context.settings.config.data;
        let log = log_path(data);
        let failed = |what: &str, error: std::io::Error| {
            let message = format!("failed to {what}: {error}");
            ErrorBody::new(ErrorCode::NodeUnreachable, message)
        };
        let private = |path: &Path| {
            files::create_private_dir(path)
                .map_err(|error| ErrorBody::new(ErrorCode::StoreUnavailable, error.to_string()))
        };
        private(data)?;
        private(log.parent().unwrap_or(data))?;
        if files::metadata(&log).is_ok_and(|metadata| metadata.len() > LOG_LIMIT_BYTES) {
            let _ = files::rename(&log, &log.with_extension("log.1")); // a long log harms nobody
        }
        let mut output = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log)
            .map_err(|error| failed("open the log of a node", error))?;
        let log_start = output.seek(SeekFrom::End(0)).unwrap_or(0);
        let errors = output.try_clone().map_err(|error| failed("open the log of a node", error))?;
        let program =
            std::env::current_exe().map_err(|error| failed("find this program", error))?;
        let idle_s = match stay {
            Stay::ForAWhile => STAY_IDLE_S,
            Stay::ForThisCall => ORPHAN_IDLE_S,
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "a node is no worker: it must outlive this command, and it has no parent to end with"
        )]
        let mut command = Command::new(program);
        command
            .args(["serve", "--detached", "--json", "--listen", "127.0.0.1:0"])
            // Its first job starts the worker; nothing is downloaded before that is announced.
            .args(["--no-warm-start", "--idle-exit"])
            .arg(idle_s.to_string())
            .arg("--data")
            .arg(data)
            // Keys pressed for this command are not meant for the node.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        if stay == Stay::ForThisCall {
            command.env("ATELIER_WORKER_SPARE", "off"); // it would be raised for nobody
        }
        if let Some(file) = &context.config_file {
            command.arg("--config").arg(file);
        }
        let child = command.spawn().map_err(|error| failed("start a node", error))?;
        Ok(Self { child, log, log_start })
    }

    /// Why the node ended: the error that it wrote last.
    fn error(&self) -> ErrorBody {
        let text = files::read(&self.log).unwrap_or_default();
        let start = usize::try_from(self.log_start).unwrap_or(0);
        let text = String::from_utf8_lossy(text.get(start..).unwrap_or_default()).into_owned();
        last_error(&text).unwrap_or_else(|| {
            let message = format!("the node ended at its start; its log is {}", self.log.display());
            ErrorBody::new(ErrorCode::NodeUnreachable, message)
        })
    }
}

/// The last line of a log that is an error as `--json` writes it.
fn last_error(log: &str) -> Option<ErrorBody> {
    #[derive(serde::Deserialize)]
    struct Line {
        error: ErrorBody,
    }
    log.lines()
        .rev()
        .find_map(|line| serde_json::from_str::<Line>(line).ok())
        .map(|line| line.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_in_a_log_is_found_between_other_lines() {
        let error = ErrorBody::new(ErrorCode::StoreCorrupt, "written by a newer version");
        let line = serde_json::json!({ "error": error });
        let log = format!("{{\"event\":\"listening\"}}\n{line}\n2026 INFO ended\n");
        assert_eq!(last_error(&log), Some(error));
        assert_eq!(last_error("INFO nothing wrong"), None);
    }

    #[test]
    fn a_file_that_names_another_boot_is_no_running_node() {
        let data = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = serde_json::json!({
            "address": listener.local_addr().unwrap(), "pid": std::process::id(), "boot_id": "old",
        });
        files::write_atomic(&data.path().join("node.json"), file.to_string().as_bytes()).unwrap();
        let server = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let info = serde_json::json!({
                "name": "n", "version": "0", "boot_id": "new", "pid": 1, "started_at": "",
                "uptime_s": 0.0, "worker_protocol": 1, "jobs_queued": 0, "jobs_running": 0,
            })
            .to_string();
            let length = info.len();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{info}").unwrap();
        });
        assert!(running(data.path()).is_none());
        server.join().unwrap();
    }
}
