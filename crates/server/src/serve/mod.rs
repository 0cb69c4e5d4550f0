//! A node's life as a process: take the data folder, take the address, start, tell the world, and end in order.
//!
//! ```text
//! lock DATA ─▶ bind ─▶ start the node ─▶ write node.json ─▶ serve ─┬─ SIGTERM, SIGINT, idle ─▶ remove node.json
//!                                                                   │      ─▶ stop listening ─▶ stop the node ─▶ exit 0
//!                                                                   └─ a second signal while ending ─▶ exit at once
//! ```
//!
//! Nothing before `node.json` looks at models, devices or the network, so that a node listens within a blink.

pub(crate) mod holder;
pub(crate) mod lock;
pub(crate) mod node_file;

use crate::config::Config;
use crate::http::{self, HttpConfig};
use atelier_engine::files;
use atelier_engine::node::Node;
use atelier_protocol::http::NodeFile;
use atelier_protocol::{ErrorBody, ErrorCode};
use axum::serve::ListenerExt;
use node_file::Announced;
use serde_json::json;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Longest time that answers in hand get to be finished.
const ANSWERS_LIMIT: Duration = Duration::from_secs(5);
/// Longest time that a file operation in hand gets when everything else has ended.
const LAST_FILES_LIMIT: Duration = Duration::from_secs(2);
/// Requests are small and the work happens in other processes; more threads would only hold memory.
const ASYNC_THREADS: usize = 2;
const BLOCKING_THREADS: usize = 32;

/// How this node is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Tell the address as a JSON line.
    pub(crate) json: bool,
    /// Started by another command: outlives the terminal that it was started from.
    pub(crate) detached: bool,
}

/// Runs a node until it is told to end.
pub(crate) fn run(config: &Config, manner: Manner) -> Result<(), ErrorBody> {
    files::create_private_dir(&config.data).map_err(|error| unavailable(&error))?;
    let _lock = lock::take(&config.data)?;
    let listener = bind(config.listen)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("atelier")
        .enable_all()
        .build()
        .map_err(|error| internal("start the runtime", &error))?;
    let served = runtime.block_on(serve(config, manner, listener));
    runtime.shutdown_timeout(LAST_FILES_LIMIT);
    served
}

fn bind(address: SocketAddr) -> Result<TcpListener, ErrorBody> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = holder::of_port(address.port()).map_or_else(
                || "a program of another user".to_owned(),
                |holder| format!("{} (pid {})", holder.name, holder.pid),
            );
            let message = format!("{address} is taken by {holder}");
            ErrorBody::new(ErrorCode::NodeAddressTaken, message)
        }
        _ => ErrorBody::new(
            ErrorCode::ConfigInvalid,
            format!("failed to listen on {address}: {error}"),
        ),
    })?;
    listener.set_nonblocking(true).map_err(|error| internal("set up the listener", &error))?;
    Ok(listener)
}

async fn serve(config: &Config, manner: Manner, listener: TcpListener) -> Result<(), ErrorBody> {
    let mut signals =
        Signals::new(manner).map_err(|error| internal("listen to signals", &error))?;
    let listener = tokio::net::TcpListener::from_std(listener)
        .map_err(|error| internal("set up the listener", &error))?;
    let address = listener.local_addr().map_err(|error| internal("read the address", &error))?;
    let program = std::env::current_exe().ok();
    let node = tokio::select! {
        started = Node::start(config.node(program.as_deref())) => started?,
        () = signals.next() => return Ok(()),
    };
    let info = node.info();
    let file = NodeFile { address: address.to_string(), pid: info.pid, boot_id: info.boot_id };
    let announced = match Announced::write(&config.data, &file) {
        Ok(announced) => announced,
        Err(error) => {
            node.stop().await;
            return Err(unavailable(&error));
        }
    };
    tell(&file, &config.data, manner);
    tracing::info!(%address, data = %config.data.display(), version = %info.version, "listening");

    let (stop, stopping) = watch::channel(false);
    let http = HttpConfig {
        listen: address.ip(),
        max_body_bytes: config.max_body_bytes,
        max_wait: config.max_wait,
    };
    let router = http::router(node.clone(), http, stopping.clone());
    // Events are small and must not wait for each other.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true); // the client may have left
    });
    let mut until = stopping;
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = until.wait_for(|stopping| *stopping).await; // an error means that we are ending anyway
    });
    let server = tokio::spawn(server.into_future());

    tokio::select! {
        () = signals.next() => tracing::info!("told to end"),
        () = node.idle() => tracing::info!("idle for long enough"),
    }
    drop(announced);
    let _ = stop.send(true); // the server may have ended
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("told to end a second time; ending at once");
        std::process::exit(130);
    });
    if tokio::time::timeout(ANSWERS_LIMIT, server).await.is_err() {
        tracing::warn!("some answers were still in hand and are cut off");
    }
    node.stop().await;
    tracing::info!("ended");
    Ok(())
}

/// SIGTERM and SIGINT as one stream.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Only held: a detached node must not end with the terminal of the command that started it.
    _hangup: Option<Signal>,
}

impl Signals {
    fn new(manner: Manner) -> io::Result<Self> {
        let hangup = manner.detached.then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: hangup,
        })
    }
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn tell(file: &NodeFile, data: &Path, manner: Manner) {
    let NodeFile { address, pid, boot_id: _ } = file;
    let line = if manner.json {
        json!({"event": "listening", "address": address, "pid": pid}).to_string()
    } else {
        format!("Atelier listens on http://{address} with data in {}", data.display())
    };
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush()); // nobody may be reading
}

fn unavailable(error: &io::Error) -> ErrorBody {
    let code = match error.kind() {
        io::ErrorKind::StorageFull => ErrorCode::StoreFull,
        _ => ErrorCode::StoreUnavailable,
    };
    ErrorBody::new(code, error.to_string())
}

fn internal(what: &str, error: &io::Error) -> ErrorBody {
    ErrorBody::new(ErrorCode::Internal, format!("failed to {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_address_is_refused_with_the_name_of_its_holder() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind(taken.local_addr().unwrap()).expect_err("taken");
        assert_eq!(error.code, ErrorCode::NodeAddressTaken);
        let own = format!("(pid {})", std::process::id());
        assert!(error.message.ends_with(&own), "{}", error.message);
    }
}
