//! The one place where worker processes are started.
//!
//! All are spawned from one thread that lives as long as the node: the parent-death signal fires when the spawning
//! *thread* ends, so a thread of a pool would take its workers along. Each worker is its own process group, so that what
//! it started ends with it. The spawner is a parameter of the supervisor: its tests run over pipes in memory.

use super::evidence::ExitCause;
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::mpsc as std_mpsc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// What to start. The environment is inherited, with these on top.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
}

/// A started worker: its three pipes and the grip on it.
pub struct Connection {
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    pub control: Box<dyn Control>,
    pub exited: Pin<Box<dyn Future<Output = ExitCause> + Send>>,
}

/// The grip on a started worker.
pub trait Control: Send + Sync {
    fn pid(&self) -> Option<u32>;
    /// Ask politely (SIGTERM to the group).
    fn terminate(&self);
    /// End at once (SIGKILL to the group).
    fn kill(&self);
    /// Ask for a stack dump on stderr (SIGUSR1 to the process).
    fn dump_stacks(&self);
}

/// Starts workers.
pub trait Spawner: Send + Sync {
    fn spawn(
        &self,
        command: WorkerCommand,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send + '_>>;
}

type Order = (WorkerCommand, oneshot::Sender<io::Result<Connection>>);

/// Starts real processes from a thread of its own.
#[derive(Debug)]
pub struct ProcessSpawner {
    orders: std_mpsc::Sender<Order>,
}

impl ProcessSpawner {
    /// Requires a tokio runtime, whose handle the thread uses to watch the processes.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (orders, inbox) = std_mpsc::channel::<Order>();
        std::thread::Builder::new().name("worker-spawner".to_owned()).spawn(move || {
            let _entered = runtime.enter();
            while let Ok((command, reply)) = inbox.recv() {
                let _ = reply.send(start(&command)); // a start that nobody waits for is dropped, which kills it
            }
        })?;
        Ok(Self { orders })
    }
}

impl Spawner for ProcessSpawner {
    fn spawn(
        &self,
        command: WorkerCommand,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send + '_>> {
        let (reply, answer) = oneshot::channel();
        let sent = self.orders.send((command, reply));
        Box::pin(async move {
            sent.map_err(|_| io::Error::other("the spawner thread has ended"))?;
            answer.await.map_err(|_| io::Error::other("the spawner thread has ended"))?
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the place that the ban points to")]
fn start(command: &WorkerCommand) -> io::Result<Connection> {
    let mut child = tokio::process::Command::new(&command.program)
        .args(&command.args)
        .envs(command.env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| {
            io::Error::new(e.kind(), format!("failed to start {}: {e}", command.program.display()))
        })?;
    let gone = || io::Error::other("the worker's pipes are missing");
    let stdin = child.stdin.take().ok_or_else(gone)?;
    let stdout = child.stdout.take().ok_or_else(gone)?;
    let stderr = child.stderr.take().ok_or_else(gone)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    Ok(Connection {
        stdin: Box::new(stdin),
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
        control: Box::new(Group(group)),
        exited: Box::pin(async move {
            let cause = child.wait().await.map_or(ExitCause::Unknown, ExitCause::from);
            if let Some(group) = group {
                // What the worker had started must not outlive it. Gone already is the normal case.
                let _ = kill_process_group(group, Signal::KILL);
            }
            cause
        }),
    })
}

struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, signal); // it may have ended by itself
        }
    }
}

impl Control for Group {
    fn pid(&self) -> Option<u32> {
        self.0.map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
    }
    fn terminate(&self) {
        self.signal(Signal::TERM);
    }
    fn kill(&self) {
        self.signal(Signal::KILL);
    }
    fn dump_stacks(&self) {
        if let Some(pid) = self.0 {
            let _ = rustix::process::kill_process(pid, Signal::USR1); // it may have ended by itself
        }
    }
}
