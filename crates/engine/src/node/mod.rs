//! The composition root and the whole surface that a face needs: it starts the domains, holds their handles and is the
//! one place that names them all.

mod launcher;
mod trial;
mod views;

use crate::clock::Clock;
use crate::device::{Device, DeviceHandle, Nvidia, TorchBuild, system_sources};
use crate::inference::Inference;
use crate::memory::{MemoryHandle, SystemObserver};
use crate::model::{Loader, ModelConfig, ModelHandle};
use crate::postprocessing::{Encoder, SamplerName};
use crate::processing::{NewRequest, ProcessingConfig, ProcessingHandle, Tools};
use crate::store::{ArtifactFiles, Idempotency, Identity, Store};
use crate::worker::environment::{CardFacts, EnvironmentConfig, Environments};
use crate::worker::{ProcessSpawner, Spawner, SupervisorConfig, WorkerHandle, Workers};
use atelier_protocol::http::{Artifact, Job, JobState, List, Validation};
use atelier_protocol::worker::Dtype;
use atelier_protocol::{ArtifactId, Bytes, DeviceId, ErrorBody, ErrorCode, JobId};
use launcher::NodeLauncher;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use uuid::Uuid;

pub use crate::processing::{StreamEvent, Submission};
pub use trial::{WorkerTrial, try_worker};

/// What a node is started with. Read from settings by the server; the engine reads no environment.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Store, artifacts, logs. Private to its user.
    pub data: PathBuf,
    /// Worker environments, `DATA/envs` unless moved.
    pub envs: PathBuf,
    /// An interpreter of the user's (`ATELIER_PYTHON`) instead of an environment of our own.
    pub python: Option<PathBuf>,
    /// Another program in the worker's place: anything that speaks the worker protocol. No environment is needed then.
    pub worker_command: Option<Vec<String>>,
    /// Where Python and uv are looked for, in the form of `PATH`.
    pub path: OsString,
    /// Folders to scan for models besides `DATA/models`; read, never written.
    pub model_folders: Vec<PathBuf>,
    /// Name of the model for requests that name none.
    pub default_model: Option<String>,
    /// Jobs that may wait; one more is answered with `processing.queue_full`.
    pub queue_limit: u32,
    /// Workers that one job may end before it is set aside.
    pub max_attempts: u32,
    /// Largest body of a request, for `GET /v1/capabilities`; the server enforces it.
    pub max_body_bytes: u64,
    /// End by itself after this much idleness.
    pub idle_exit: Option<Duration>,
    /// Start a worker at boot rather than at the first job.
    pub warm_start: bool,
    /// Keep a second process ready beside each worker, raised when the worker is idle.
    pub spare: SparePolicy,
    /// Replace an idle worker that has grown by this much since its first work.
    pub recycle_growth: Option<Bytes>,
}

/// Whether a second process stands by for each worker. It costs the memory of its imports, and saves their time when a
/// worker is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SparePolicy {
    /// On machines with 16 GiB of RAM or more.
    Auto,
    On,
    Off,
}

impl NodeConfig {
    /// The worker environments that a node of this configuration uses, also for commands that run without a node.
    #[must_use]
    pub fn environments(&self) -> Environments {
        let (envs, python, path) = (self.envs.clone(), self.python.clone(), self.path.clone());
        Environments::new(EnvironmentConfig { envs, python, path }, Clock::system())
    }
}

/// The cards of this machine, for [`Environments::ensure`].
pub async fn cards() -> Vec<CardFacts> {
    let devices = DeviceHandle::start(system_sources(&Nvidia::default()), TorchBuild::Locked).await;
    launcher::card_facts(&devices.view().devices)
}

/// A worker that has been idle for this long gets company, where spares are kept.
const SPARE_AFTER: Duration = Duration::from_secs(3);
/// Machines sold as "16 GiB" report a little less.
const SPARE_FROM_RAM: Bytes = Bytes::mib(15 << 10);

/// A running node. Cheap to clone; ends when [`Node::stop`] is called.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    config: NodeConfig,
    boot_id: Uuid,
    started_at: String,
    started: Instant,
    last_used: Mutex<Instant>,
    store: Store,
    devices: DeviceHandle,
    memory: MemoryHandle,
    models: ModelHandle,
    loader: Loader,
    workers: Workers,
    processing: ProcessingHandle,
    inference: Inference,
    environments: Environments,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("boot_id", &self.0.boot_id).finish_non_exhaustive()
    }
}

impl Node {
    /// Starts everything but the listener. Requires a tokio runtime; the caller holds the lock of the data folder.
    pub async fn start(config: NodeConfig) -> Result<Self, ErrorBody> {
        let (clock, boot_id) = (Clock::system(), Uuid::now_v7());
        let store = {
            let path = config.data.join("atelier.db");
            let identity = Identity { node_id: Uuid::now_v7(), boot_id };
            blocking(move || Store::open(&path, identity)).await??
        };
        let files = {
            let root = config.data.join("artifacts");
            blocking(move || ArtifactFiles::open(&root)).await??
        };
        let nvidia = Nvidia::default();
        let torch = match (&config.python, &config.worker_command) {
            (None, None) => TorchBuild::Locked,
            _ => TorchBuild::Foreign,
        };
        let devices = DeviceHandle::start(system_sources(&nvidia), torch).await;
        let found = devices.view();
        for finding in found.findings.iter() {
            tracing::warn!("device discovery: {finding}");
        }
        let memory =
            MemoryHandle::start(&found.devices, Arc::new(SystemObserver(nvidia)), clock.clone())
                .await;
        let own = config.data.join("models");
        crate::files::create_dir_all(&own.join("diffusers"))
            .map_err(|error| ErrorBody::new(ErrorCode::StoreUnavailable, error.to_string()))?;
        let folders = std::iter::once(own).chain(config.model_folders.clone());
        let default_model = config.default_model.clone();
        let models = ModelHandle::start(
            ModelConfig { folders: folders.collect(), default_model },
            clock.clone(),
        );
        models.scan().await?;
        let environments = config.environments();
        let workers = start_workers(&config, &devices, &environments, &clock)?;
        let loader = Loader::new(
            models.clone(),
            devices.clone(),
            memory.clone(),
            workers.clone(),
            store.clone(),
        );
        let inference = Inference::new(models.clone(), devices.clone());
        let (order, default_devices) = placement(&devices);
        let processing = ProcessingHandle::start(
            ProcessingConfig::new(config.queue_limit, config.max_attempts),
            Tools {
                store: store.clone(),
                files,
                workers: workers.clone(),
                models: models.clone(),
                loader: loader.clone(),
                memory: memory.clone(),
                planner: Arc::new(inference.clone()),
                finisher: Arc::new(Encoder::new(sampler_name)),
                clock: clock.clone(),
            },
            order.clone(),
            default_devices,
        )
        .await?;
        if config.warm_start
            && let Some(worker) = order.first().and_then(|best| workers.get(best)).cloned()
        {
            tokio::spawn(async move { worker.ready().await });
        }
        let (started_at, started) = (clock.stamp(), Instant::now());
        let last_used = Mutex::new(started);
        Ok(Self(Arc::new(Inner {
            config,
            boot_id,
            started_at,
            started,
            last_used,
            store,
            devices,
            memory,
            models,
            loader,
            workers,
            processing,
            inference,
            environments,
        })))
    }

    /// Takes no more work, ends the workers and closes the store. Running jobs are found again at the next start.
    pub async fn stop(&self) {
        let inner = &self.0;
        tokio::join!(inner.processing.stop(), inner.workers.shutdown());
        if let Err(error) = inner.store.close().await {
            tracing::warn!("the store was not closed in order: {error}");
        }
    }

    /// Checks and accepts a job request, given as JSON so that every problem is reported at once.
    pub async fn submit(
        &self,
        body: Value,
        idempotency_key: Option<String>,
    ) -> Result<Submission, ErrorBody> {
        let resolved = self.0.inference.resolve(&body, random_seed())?;
        // Compared as it was sent: a seed that was left out is filled in anew each time.
        let idempotency = idempotency_key.map(|key| {
            let body_hash = blake3::hash(body.to_string().as_bytes()).to_hex().to_string();
            Idempotency { key, body_hash }
        });
        let (request, warnings) = (resolved.request, resolved.warnings);
        self.0.processing.submit(NewRequest { request, warnings, idempotency }).await
    }

    /// The same checks as [`Node::submit`], without accepting anything.
    pub async fn validate(&self, body: Value) -> Validation {
        let plan = |resolved: &crate::inference::Resolved| {
            use crate::processing::{Placement, Planner};
            self.0.inference.plan(&resolved.request, Placement { dtype: Dtype::Float32, index: 0 })
        };
        match self.0.inference.resolve(&body, random_seed()) {
            Ok(resolved) => match plan(&resolved) {
                Ok(_) => Validation {
                    valid: true,
                    request: Some(resolved.request),
                    warnings: resolved.warnings,
                    error: None,
                },
                Err(error) => refused(error),
            },
            Err(error) => refused(error),
        }
    }

    pub async fn job(&self, id: JobId) -> Result<Job, ErrorBody> {
        self.0.processing.job(id).await
    }

    /// Newest first.
    pub async fn jobs(
        &self,
        state: Option<JobState>,
        cursor: Option<String>,
        limit: u32,
    ) -> Result<List<Job>, ErrorBody> {
        self.0.processing.jobs(state, cursor, limit).await
    }

    /// Asks for the end of a job. Cancelling an ended job is answered with `processing.conflict`.
    pub async fn cancel(&self, id: JobId) -> Result<Job, ErrorBody> {
        self.0.processing.cancel(id).await
    }

    /// The job once it has ended, or as it is when `limit` is over.
    pub async fn wait(&self, id: JobId, limit: Duration) -> Result<Job, ErrorBody> {
        self.0.processing.wait(id, limit).await
    }

    /// Stored events after `after` (all when absent), then live ones. A job's stream closes after its `end`; the node's
    /// stream (`job` absent) starts now unless `after` is given.
    pub async fn events(
        &self,
        job: Option<JobId>,
        after: Option<u64>,
    ) -> Result<mpsc::Receiver<StreamEvent>, ErrorBody> {
        self.0.processing.events(job, after).await
    }

    /// An output and the absolute path of its file.
    pub async fn artifact(&self, id: ArtifactId) -> Result<(Artifact, PathBuf), ErrorBody> {
        self.0.processing.artifact(id).await
    }

    /// The worker environments of this node.
    #[must_use]
    pub fn environments(&self) -> &Environments {
        &self.0.environments
    }

    /// Marks the node as in use, so that `idle_exit` starts again. Called for every HTTP request that is not a probe.
    pub fn touch(&self) {
        *self.0.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Resolves when the node should end by itself (idle for `idle_exit`); never without that setting.
    pub async fn idle(&self) {
        let Some(limit) = self.0.config.idle_exit else { return std::future::pending().await };
        loop {
            let busy = self.0.processing.queued() > 0 || !self.0.processing.running().is_empty();
            if busy {
                self.touch();
            }
            let idle = self.0.last_used.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            if idle >= limit {
                return;
            }
            tokio::time::sleep((limit - idle).min(Duration::from_secs(1))).await;
        }
    }
}

/// A scheduler as other programs' metadata writes it.
fn sampler_name(scheduler: &str) -> SamplerName {
    let (sampler, schedule_type) = crate::inference::titles_of(scheduler);
    SamplerName { sampler, schedule_type }
}

fn refused(error: ErrorBody) -> Validation {
    Validation { valid: false, request: None, warnings: Vec::new(), error: Some(error) }
}

/// The random bits of a fresh UUID: enough for a seed, and no generator to keep.
fn random_seed() -> u64 {
    Uuid::new_v4().as_u64_pair().1 & ((1 << 53) - 1)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ErrorBody> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        ErrorBody::new(ErrorCode::Internal, format!("a start-up task ended: {error}"))
    })
}

/// Usable devices, best first, and how many of them take jobs that name none: all cards, or the processor without cards.
fn placement(devices: &DeviceHandle) -> (Vec<DeviceId>, usize) {
    let view = devices.view();
    let usable = view.devices.iter().filter(|device| device.is_usable());
    let (cpu, cards): (Vec<_>, Vec<_>) = usable.map(|d| d.id.clone()).partition(DeviceId::is_cpu);
    let default_devices = if cards.is_empty() { cpu.len() } else { cards.len() };
    (cards.into_iter().chain(cpu).collect(), default_devices)
}

/// Threads of a device's worker: workers × threads stay within the cores.
fn threads_of(devices: &[Device], device: &Device) -> u32 {
    let cores = devices.iter().find_map(|device| device.cores).unwrap_or(1).max(1);
    let cards = devices.iter().filter(|d| d.is_usable() && !d.id.is_cpu()).count();
    let cards = u32::try_from(cards).unwrap_or(u32::MAX);
    if device.id.is_cpu() { cores } else { (cores / cards.max(1)).max(1) }
}

fn start_workers(
    config: &NodeConfig,
    devices: &DeviceHandle,
    environments: &Environments,
    clock: &Clock,
) -> Result<Workers, ErrorBody> {
    let spawner = ProcessSpawner::start().map_err(|error| {
        ErrorBody::new(ErrorCode::Internal, format!("the spawner thread did not start: {error}"))
    })?;
    let spawner: Arc<dyn Spawner> = Arc::new(spawner);
    let view = devices.view();
    let ram = view.devices.iter().filter(|d| d.id.is_cpu()).find_map(|device| device.memory);
    let spare = match config.spare {
        SparePolicy::Auto => ram.is_some_and(|ram| ram >= SPARE_FROM_RAM),
        SparePolicy::On => true,
        SparePolicy::Off => false,
    };
    let workers = view.devices.iter().filter(|device| device.is_usable()).map(|device| {
        let threads = threads_of(&view.devices, device);
        let launcher = NodeLauncher::new(config, device, environments, &view.devices, threads);
        let handle = WorkerHandle::start(
            SupervisorConfig {
                threads,
                keep_warm: config.warm_start,
                spare_after: spare.then_some(SPARE_AFTER),
                recycle_growth: config.recycle_growth,
                ..SupervisorConfig::default()
            },
            Arc::clone(&spawner),
            Arc::new(launcher),
            clock.clone(),
        );
        (device.id.clone(), handle)
    });
    Ok(Workers::new(workers.collect::<BTreeMap<_, _>>()))
}
