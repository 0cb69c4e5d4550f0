//! Which program a device's worker is, with its environment made ready first.

use super::NodeConfig;
use crate::device::Device;
use crate::worker::environment::{
    CardFacts, Environments, InstallEvent, InstallOptions, Interpreter,
};
use crate::worker::{Launcher, Preparation, StartProgress, WorkerCommand};
use atelier_protocol::ErrorBody;
use std::ffi::OsString;
use std::path::PathBuf;
use tokio::sync::mpsc;

pub(super) struct NodeLauncher {
    environments: Environments,
    other: Option<Vec<String>>,
    cards: Vec<CardFacts>,
    env: Vec<(OsString, OsString)>,
}

/// What the environment manager needs to know of the cards that are there.
pub(super) fn card_facts(devices: &[Device]) -> Vec<CardFacts> {
    let facts = devices.iter().filter_map(|device| {
        Some(CardFacts {
            name: device.name.clone(),
            compute_capability: device.compute_capability?,
            driver: device.driver.clone()?,
        })
    });
    facts.collect()
}

impl NodeLauncher {
    pub(super) fn new(
        config: &NodeConfig,
        device: &Device,
        environments: &Environments,
        devices: &[Device],
        threads: u32,
    ) -> Self {
        Self {
            environments: environments.clone(),
            other: config.worker_command.clone(),
            cards: card_facts(devices),
            env: variables(device, threads),
        }
    }
}

/// On top of our own environment.
pub(super) fn variables(device: &Device, threads: u32) -> Vec<(OsString, OsString)> {
    // A worker sees its own card only; models come from this node's folders and never from a hub.
    let card = device.uuid.clone().filter(|_| !device.id.is_cpu()).unwrap_or_default();
    [
        ("CUDA_VISIBLE_DEVICES", card),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
        ("OMP_NUM_THREADS", threads.to_string()),
        ("MKL_NUM_THREADS", threads.to_string()),
        ("HF_HUB_OFFLINE", "1".to_owned()),
        ("TRANSFORMERS_OFFLINE", "1".to_owned()),
        ("HF_HUB_DISABLE_TELEMETRY", "1".to_owned()),
        ("TOKENIZERS_PARALLELISM", "false".to_owned()),
    ]
    .map(|(key, value)| (key.into(), value.into()))
    .into()
}

/// Our worker in this interpreter.
pub(super) fn own(interpreter: Interpreter, mut env: Vec<(OsString, OsString)>) -> WorkerCommand {
    env.push(("PYTHONPATH".into(), interpreter.pythonpath.into()));
    let parent = std::process::id().to_string();
    let args = ["-P", "-X", "faulthandler", "-m", "atelier_worker", "--parent", &parent];
    WorkerCommand { program: interpreter.python, args: args.map(OsString::from).into(), env }
}

/// Another program in its place; none without words.
pub(super) fn another(words: &[String], env: Vec<(OsString, OsString)>) -> Option<WorkerCommand> {
    let [program, args @ ..] = words else { return None };
    let parent = std::process::id().to_string();
    let args = args.iter().map(OsString::from).chain(["--parent".into(), parent.into()]);
    Some(WorkerCommand { program: PathBuf::from(program), args: args.collect(), env })
}

impl Launcher for NodeLauncher {
    fn prepare(&self, progress: mpsc::Sender<StartProgress>) -> Preparation {
        let env = self.env.clone();
        if let Some(command) = self.other.as_deref().and_then(|words| another(words, env.clone())) {
            return Box::pin(async move { Ok(command) });
        }
        let (environments, cards) = (self.environments.clone(), self.cards.clone());
        Box::pin(async move {
            let (events, installing) = mpsc::channel(16);
            tokio::spawn(report(installing, progress));
            let interpreter = environments
                .ensure(&cards, InstallOptions::default(), events)
                .await
                .map_err(ErrorBody::from)?;
            Ok(own(interpreter, env))
        })
    }
}

/// Passes the installation on as the progress of a start, and into the log.
async fn report(mut events: mpsc::Receiver<InstallEvent>, progress: mpsc::Sender<StartProgress>) {
    while let Some(event) = events.recv().await {
        match event {
            InstallEvent::Notice(notice) => tracing::info!("{notice}"),
            InstallEvent::Step(step) => tracing::info!("worker environment: {step}"),
            InstallEvent::Bytes { done, total } => {
                let install =
                    StartProgress::Install { done_bytes: done.0, total_bytes: Some(total.0) };
                let _ = progress.try_send(install); // the next one says more
            }
            InstallEvent::Done { seconds, bytes, .. } => {
                tracing::info!("worker environment: {bytes} in {seconds:.0} s");
            }
        }
    }
}
