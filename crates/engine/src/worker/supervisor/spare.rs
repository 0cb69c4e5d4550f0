//! A second process that has imported everything and touched no device, so that a lost worker costs no import.

use super::pipes::{PipeEvent, Pipes};
use super::{SupervisorConfig, welcome};
use crate::worker::Decoded;
use crate::worker::launch::Launcher;
use crate::worker::process::Spawner;
use atelier_protocol::worker::{FromWorker, PROTOCOL};
use atelier_protocol::{ErrorBody, ErrorCode};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A process that waits to become the worker.
pub(super) struct Spare {
    pub(super) pipes: Pipes,
    pub(super) versions: BTreeMap<String, String>,
    pub(super) backends: Vec<String>,
}

/// Starts a process and brings it to `ready`.
pub(super) async fn raise(
    config: SupervisorConfig,
    launcher: Arc<dyn Launcher>,
    spawner: Arc<dyn Spawner>,
) -> Result<Spare, ErrorBody> {
    let (progress, _nobody_watches) = mpsc::channel(1);
    let command = launcher.prepare(progress).await?;
    let connection = spawner
        .spawn(command)
        .await
        .map_err(|error| ErrorBody::new(ErrorCode::EnvironmentBroken, error.to_string()))?;
    let mut pipes = Pipes::attach(connection);
    let hello = timeout(config.hello_limit, next_message(&mut pipes)).await;
    let mut versions = match hello {
        Ok(Some(FromWorker::Hello { protocol: PROTOCOL, build, python, .. })) => {
            BTreeMap::from([("worker".to_owned(), build), ("python".to_owned(), python)])
        }
        _ => return Err(failed(&pipes, "said no proper hello")),
    };
    if !pipes.send(&welcome(config.threads)) {
        return Err(failed(&pipes, "does not read"));
    }
    match timeout(config.import_limit, next_message(&mut pipes)).await {
        Ok(Some(FromWorker::Ready { versions: more, backends, .. })) => {
            versions.extend(more);
            Ok(Spare { pipes, versions, backends })
        }
        _ => Err(failed(&pipes, "did not become ready")),
    }
}

/// The next line that is a message; none once the process has ended.
async fn next_message(pipes: &mut Pipes) -> Option<FromWorker> {
    loop {
        match pipes.events.recv().await? {
            PipeEvent::Line(Decoded::Message(message)) => return Some(*message),
            PipeEvent::Line(Decoded::Refused(_)) => {}
            PipeEvent::Exited(_) => return None,
        }
    }
}

fn failed(pipes: &Pipes, what: &str) -> ErrorBody {
    pipes.control.kill();
    ErrorBody::new(ErrorCode::WorkerCrashed, format!("the spare worker {what}"))
}
