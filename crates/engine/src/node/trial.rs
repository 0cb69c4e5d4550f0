//! Starts a worker as a node would, asks it what it sees, and ends it again: what `atelier doctor` does to know that
//! workers start. Loads no model, installs nothing, leaves nothing behind.

use super::{NodeConfig, launcher, placement, threads_of};
use crate::clock::Clock;
use crate::device::{DeviceHandle, Nvidia, TorchBuild, system_sources};
use crate::files;
use crate::worker::{
    Launcher, Preparation, ProcessSpawner, StartProgress, SupervisorConfig, WorkerCommand,
    WorkerHandle,
};
use atelier_protocol::worker::{FromWorker, ToWorker, WorkerDevice};
use atelier_protocol::{DeviceId, ErrorBody, ErrorCode};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// From `ready` to the answer to `probe_devices`: the first touch of a card loads its libraries.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// What a worker said before it was ended again.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerTrial {
    /// The device that a node would start its first worker for.
    pub device: DeviceId,
    pub seconds_to_ready: f64,
    /// Python, torch and so on, as the worker reported them.
    pub versions: BTreeMap<String, String>,
    /// What its libraries see, among which the device should be.
    pub seen: Vec<WorkerDevice>,
}

/// `None` when there is no environment to start a worker in. `scratch` is a name for a folder that need not come into
/// being and is gone afterwards; `limit` is for the start alone.
pub async fn try_worker(
    config: &NodeConfig,
    scratch: PathBuf,
    limit: Duration,
) -> Result<Option<WorkerTrial>, ErrorBody> {
    let torch = match (&config.python, &config.worker_command) {
        (None, None) => TorchBuild::Locked,
        _ => TorchBuild::Foreign,
    };
    let devices = DeviceHandle::start(system_sources(&Nvidia::default()), torch).await;
    let (order, _) = placement(&devices);
    let view = devices.view();
    let Some(device) = view.devices.iter().find(|device| Some(&device.id) == order.first()) else {
        return Err(ErrorBody::new(ErrorCode::DeviceNotFound, "there is no device to draw on"));
    };
    let threads = threads_of(&view.devices, device);
    let mut env = launcher::variables(device, threads);
    env.push(("PYTHONDONTWRITEBYTECODE".into(), "1".into()));
    let scratch = Scratch(scratch);
    let other = config.worker_command.as_deref();
    let command = match other.and_then(|words| launcher::another(words, env.clone())) {
        Some(command) => command,
        None => match config.environments().borrow(&scratch.0).await? {
            Some(interpreter) => launcher::own(interpreter, env),
            None => return Ok(None),
        },
    };
    let spawner = ProcessSpawner::start().map_err(|error| {
        ErrorBody::new(ErrorCode::Internal, format!("the spawner thread did not start: {error}"))
    })?;
    let supervisor = SupervisorConfig { threads, start_attempts: 1, ..SupervisorConfig::default() };
    let launcher = Arc::new(Fixed(command));
    let worker = WorkerHandle::start(supervisor, Arc::new(spawner), launcher, Clock::system());
    let asked = ask(&worker, device.id.clone(), limit).await;
    worker.shutdown().await;
    asked.map(Some)
}

async fn ask(
    worker: &WorkerHandle,
    device: DeviceId,
    limit: Duration,
) -> Result<WorkerTrial, ErrorBody> {
    let started = Instant::now();
    tokio::time::timeout(limit, worker.ready()).await.map_err(|_| {
        let seconds = limit.as_secs();
        let message = format!("the worker was not ready after {seconds} s");
        ErrorBody::new(ErrorCode::WorkerUnresponsive, message)
    })??;
    let seconds_to_ready = started.elapsed().as_secs_f64();
    let versions = worker.view().versions;
    match worker.request(PROBE_LIMIT, |id| ToWorker::ProbeDevices { id }).await? {
        FromWorker::Devices { devices: seen, .. } => {
            Ok(WorkerTrial { device, seconds_to_ready, versions, seen })
        }
        _ => Err(ErrorBody::new(
            ErrorCode::ProtocolViolation,
            "the worker answered `probe_devices` with something else",
        )),
    }
}

/// One command, whenever it is asked for.
struct Fixed(WorkerCommand);

impl Launcher for Fixed {
    fn prepare(&self, _: mpsc::Sender<StartProgress>) -> Preparation {
        let command = self.0.clone();
        Box::pin(async move { Ok(command) })
    }
}

/// Removed when dropped, if it came into being.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.exists() {
            let _ = files::remove_dir_all(&self.0); // others clear temporary folders, too
        }
    }
}
