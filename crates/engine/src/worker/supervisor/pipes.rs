//! The tasks beside the actor: one each for the worker's stdin, stdout, stderr and its end.

use crate::worker::evidence::StderrTail;
use crate::worker::process::{Connection, Control};
use crate::worker::{Decoded, ExitCause, LineDecoder};
use atelier_protocol::worker::ToWorker;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// What the tasks tell the actor.
#[derive(Debug)]
pub(super) enum PipeEvent {
    Line(Decoded),
    Exited(ExitCause),
}

/// A live worker's near end.
pub(super) struct Pipes {
    pub(super) control: Box<dyn Control>,
    pub(super) stdin: mpsc::Sender<String>,
    pub(super) events: mpsc::Receiver<PipeEvent>,
    pub(super) stderr: StderrTail,
}

const LOG_LINE_BYTES: usize = 64 << 10;
const LOG_LINES_PER_SECOND: u32 = 2_000;
/// How long output that was written before the end may take to be read, should a grandchild hold the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(500);

impl Pipes {
    pub(super) fn attach(connection: Connection) -> Self {
        let Connection { stdin, stdout, stderr, control, exited } = connection;
        let (lines_in, lines_out) = mpsc::channel(64);
        let (events_in, events) = mpsc::channel(256);
        let tail = StderrTail::default();
        tokio::spawn(write(stdin, lines_out));
        let reader = tokio::spawn(read(stdout, events_in.clone()));
        let drain = tokio::spawn(drain(stderr, tail.clone(), control.pid()));
        tokio::spawn(async move {
            let cause = exited.await;
            // What was said before the end counts, so it is read before the end is announced.
            let _ = timeout(LAST_WORDS, reader).await;
            let _ = timeout(LAST_WORDS, drain).await;
            let _ = events_in.send(PipeEvent::Exited(cause)).await; // nobody is left to tell when the node stops
        });
        Self { control, stdin: lines_in, events, stderr: tail }
    }

    /// Lets a worker that was told to end do so, and kills it when it does not.
    pub(super) async fn outlive(mut self, grace: Duration) {
        let gone = async {
            loop {
                match self.events.recv().await {
                    Some(PipeEvent::Line(_)) => {}
                    Some(PipeEvent::Exited(_)) | None => return,
                }
            }
        };
        if timeout(grace, gone).await.is_err() {
            self.control.kill();
        }
    }

    /// Hands a message to the writer. False when the worker has not read its stdin for 64 messages.
    pub(super) fn send(&self, message: &ToWorker) -> bool {
        let line =
            serde_json::to_string(message).expect("messages are plain data with string keys");
        self.stdin.try_send(line + "\n").is_ok()
    }
}

async fn write(mut stdin: Box<dyn AsyncWrite + Send + Unpin>, mut lines: mpsc::Receiver<String>) {
    while let Some(line) = lines.recv().await {
        if stdin.write_all(line.as_bytes()).await.is_err() || stdin.flush().await.is_err() {
            return; // the worker has closed its side; its end is reported by the task that waits for it
        }
    }
}

async fn read(mut stdout: Box<dyn AsyncRead + Send + Unpin>, events: mpsc::Sender<PipeEvent>) {
    let mut decoder = LineDecoder::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(n @ 1..) = stdout.read(&mut buffer).await else { return };
        for decoded in decoder.push(&buffer[..n]) {
            if events.send(PipeEvent::Line(decoded)).await.is_err() {
                return;
            }
        }
    }
}

/// Reads stderr from the first byte to the last; a worker whose stderr is full stops for good.
async fn drain(mut stderr: Box<dyn AsyncRead + Send + Unpin>, tail: StderrTail, pid: Option<u32>) {
    let mut line = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    let mut budget = LOG_LINES_PER_SECOND;
    let mut dropped = 0_u64;
    let mut window = Instant::now();
    loop {
        let n = stderr.read(&mut buffer).await.unwrap_or(0);
        let ended = n == 0;
        for &byte in buffer[..n].iter().chain(if ended { &b"\n"[..] } else { &[] }) {
            if byte != b'\n' && byte != b'\r' {
                if line.len() < LOG_LINE_BYTES {
                    line.push(byte);
                }
                continue;
            }
            let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
            line.clear();
            if text.is_empty() {
                continue;
            }
            if window.elapsed() >= Duration::from_secs(1) {
                if dropped > 0 {
                    tracing::warn!(pid, dropped, "worker log lines were dropped");
                }
                (window, budget, dropped) = (Instant::now(), LOG_LINES_PER_SECOND, 0);
            }
            if budget == 0 {
                dropped += 1;
            } else {
                budget -= 1;
                tracing::debug!(target: "worker", pid, "{text}");
            }
            tail.push(text);
        }
        if ended {
            return;
        }
    }
}
