//! Puts models on devices and remembers what is where.
//!
//! Residency belongs to a worker's epoch: when a worker is gone, everything that was in it is forgotten. Weights are
//! promised to the ledger before the worker hears of them; when they do not fit, what was used longest ago leaves first.

use super::numerics::{self, Profile};
use super::{Model, ModelHandle};
use crate::device::DeviceHandle;
use crate::memory::{MemoryHandle, Owner, Reservation};
use crate::store::Store;
use crate::worker::{WorkerHandle, Workers};
use atelier_protocol::worker::{Dtype, FromWorker, ModelSource, Numerics, ToWorker};
use atelier_protocol::{DeviceId, ErrorBody, ErrorCode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

/// Longest that a worker may take to load, measure or unload a model.
const LOAD_LIMIT: Duration = Duration::from_secs(600);

/// A model that is ready to draw.
#[derive(Clone, PartialEq, Debug)]
pub struct Loaded {
    pub numerics: Numerics,
    /// The device as its worker calls it: a worker sees its own card only, as the first one.
    pub worker_device: DeviceId,
    pub model_blake3: Option<String>,
    /// Time spent on it for this caller; 0 when it was there.
    pub load_ms: f64,
}

/// Which models are on which device.
pub type Residency = BTreeMap<DeviceId, Vec<String>>;

struct Resident {
    model: String,
    last_used: Instant,
    /// Released when the model leaves or its worker is gone.
    _weights: Reservation,
}

#[derive(Default)]
struct OnDevice {
    epoch: u64,
    residents: Vec<Resident>,
    profile: Option<Numerics>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Loader {
    models: ModelHandle,
    devices: DeviceHandle,
    memory: MemoryHandle,
    workers: Workers,
    store: Store,
    /// One lock a device, held while its worker loads: two loads on one device would only slow each other. Nobody else
    /// waits for it: what others want to know is published.
    state: Arc<BTreeMap<DeviceId, Mutex<OnDevice>>>,
    residency: watch::Sender<Residency>,
    profiles: watch::Sender<BTreeMap<DeviceId, Numerics>>,
}

impl Loader {
    #[must_use]
    pub fn new(
        models: ModelHandle,
        devices: DeviceHandle,
        memory: MemoryHandle,
        workers: Workers,
        store: Store,
    ) -> Self {
        let state = workers.iter().map(|(id, _)| (id.clone(), Mutex::default())).collect();
        let (residency, _) = watch::channel(Residency::new());
        let (profiles, _) = watch::channel(BTreeMap::new());
        Self {
            models,
            devices,
            memory,
            workers,
            store,
            state: Arc::new(state),
            residency,
            profiles,
        }
    }

    /// Where every model is now. Never waits.
    #[must_use]
    pub fn residency(&self) -> Residency {
        let mut residency = self.residency.borrow().clone();
        residency.retain(|device, _| {
            self.workers.get(device).is_some_and(|worker| worker.view().pid.is_some())
        });
        residency
    }

    /// How numbers are computed on a device, once chosen.
    #[must_use]
    pub fn numerics(&self, device: &DeviceId) -> Option<Numerics> {
        self.profiles.borrow().get(device).cloned()
    }

    /// Makes a model ready on a device: starts the worker, chooses the numerics once, loads what is not there.
    pub async fn ensure(&self, model: &Arc<Model>, device: &DeviceId) -> Result<Loaded, ErrorBody> {
        let (Some(worker), Some(state)) = (self.workers.get(device), self.state.get(device)) else {
            let message = format!("{device} has no worker on this node");
            return Err(ErrorBody::new(ErrorCode::DeviceNotFound, message));
        };
        let mut state = state.lock().await;
        let epoch = worker.ready().await?;
        if state.epoch != epoch {
            state.residents.clear(); // they went with their worker
            state.epoch = epoch;
        }
        let worker_device =
            if device.is_cpu() { DeviceId::cpu() } else { DeviceId("cuda:0".into()) };
        let started = Instant::now();
        let numerics = match state.profile.clone() {
            Some(numerics) => numerics,
            None => {
                let chosen = self.profile(worker, model, device, &worker_device).await?;
                self.profiles.send_modify(|all| {
                    all.insert(device.clone(), chosen.clone());
                });
                state.profile = Some(chosen.clone());
                chosen
            }
        };
        let resident = state.residents.iter_mut().find(|resident| resident.model == model.id);
        let mut load_ms = 0.0;
        if let Some(resident) = resident {
            resident.last_used = Instant::now();
        } else {
            let weights = self.make_room(&mut state, worker, device, model, &numerics).await?;
            let (source, numerics, worker_device) =
                (source(model), numerics.clone(), worker_device.clone());
            let answer = worker.request(LOAD_LIMIT, move |id| ToWorker::Load {
                id,
                work: None,
                model: source,
                device: worker_device,
                numerics,
            });
            let FromWorker::Loaded { .. } = answer.await? else { return Err(unexpected("load")) };
            self.memory.settle(&weights).await;
            let model = model.id.clone();
            let last_used = Instant::now();
            state.residents.push(Resident { model, last_used, _weights: weights });
            load_ms = started.elapsed().as_secs_f64() * 1000.0;
            self.publish(device, &state);
        }
        drop(state);
        let model_blake3 = self.models.hash(model).await.ok();
        Ok(Loaded { numerics, worker_device, model_blake3, load_ms })
    }

    /// Promises the weights, letting go of what was used longest ago until they fit.
    async fn make_room(
        &self,
        state: &mut OnDevice,
        worker: &WorkerHandle,
        device: &DeviceId,
        model: &Model,
        numerics: &Numerics,
    ) -> Result<Reservation, ErrorBody> {
        let asked = model.weights_bytes(numerics.dtype);
        loop {
            let owner = Owner::Model(model.id.clone());
            let error = match self.memory.reserve(device, owner, asked).await {
                Ok(reservation) => return Ok(reservation),
                Err(error) => error,
            };
            let oldest = (0..state.residents.len()).min_by_key(|&i| state.residents[i].last_used);
            let Some(oldest) = oldest else { return Err(error.into()) };
            let leaving = state.residents.swap_remove(oldest);
            tracing::info!(%device, model = leaving.model, "unloading to make room");
            let name = leaving.model.clone();
            worker.request(LOAD_LIMIT, move |id| ToWorker::Unload { id, model: name }).await?;
            self.publish(device, state);
        }
    }

    /// The stored profile of this device and its libraries, or a new one by measuring.
    async fn profile(
        &self,
        worker: &WorkerHandle,
        model: &Arc<Model>,
        device: &DeviceId,
        worker_device: &DeviceId,
    ) -> Result<Numerics, ErrorBody> {
        let torch = worker.view().versions.get("torch").cloned().unwrap_or_default();
        let facts = self.devices.get(device).map_err(ErrorBody::from)?;
        let key = numerics::setting_key(&facts, &torch);
        if let Some(stored) = self.store.setting(&key).await? {
            match serde_json::from_value::<Profile>(stored) {
                Ok(profile) => return Ok(profile.numerics),
                Err(error) => {
                    tracing::warn!(%device, "the stored numerics cannot be read: {error}")
                }
            }
        }
        let candidates = numerics::candidates(&facts);
        let size = &model.card.defaults;
        let (width, height) = (size.width, size.height);
        let asked = model.weights_bytes(Dtype::Float32).saturating_add(model.peak_bytes(
            width,
            height,
            1,
            Dtype::Float32,
        ));
        let owner = Owner::Model(model.id.clone());
        let _room = self.memory.reserve(device, owner, asked).await.map_err(ErrorBody::from)?;
        tracing::info!(%device, candidates = candidates.len(), "measuring how numbers are computed fastest");
        let (source, worker_device) = (source(model), worker_device.clone());
        let answer = worker.request(LOAD_LIMIT, move |id| ToWorker::Measure {
            id,
            model: source,
            device: worker_device,
            candidates,
            width,
            height,
        });
        let FromWorker::Measured { results, .. } = answer.await? else {
            return Err(unexpected("measure"));
        };
        let chosen = numerics::choose(&results).ok_or_else(|| unexpected("measure"))?;
        tracing::info!(%device, ?chosen, "numerics chosen");
        let profile = Profile { numerics: chosen.clone(), measured: results };
        let stored = serde_json::to_value(&profile).unwrap_or_default();
        self.store.set_setting(&key, stored).await?;
        Ok(chosen)
    }

    fn publish(&self, device: &DeviceId, state: &OnDevice) {
        let names = state.residents.iter().map(|resident| resident.model.clone()).collect();
        self.residency.send_modify(|all| {
            all.insert(device.clone(), names);
        });
    }
}

fn source(model: &Model) -> ModelSource {
    ModelSource { model: model.id.clone(), folder: model.folder.display().to_string() }
}

fn unexpected(request: &str) -> ErrorBody {
    ErrorBody::new(
        ErrorCode::ProtocolViolation,
        format!("the worker answered `{request}` with something else"),
    )
}
