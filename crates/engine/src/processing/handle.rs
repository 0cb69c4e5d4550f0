//! The processing domain as everyone else sees it.

use super::actor::{Actor, Board, Event};
use super::attempt::Context;
use super::error::ProcessingError;
use super::finish::Finisher;
use super::health::HealthLimits;
use super::live::{Live, StreamEvent};
use super::pace::Pace;
use super::planner::Planner;
use super::queue::Waiting;
use crate::clock::Clock;
use crate::memory::MemoryHandle;
use crate::model::{Loader, ModelHandle};
use crate::store::{
    ArtifactFiles, CancelOutcome, Idempotency, NewJob, Store, StoredEvent, Submitted,
};
use crate::worker::Workers;
use atelier_protocol::http::{Artifact, EventKind, Job, JobState, List, ResolvedRequest};
use atelier_protocol::{ArtifactId, Detail, DeviceId, ErrorBody, JobId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

#[derive(Clone, Debug)]
pub struct ProcessingConfig {
    pub queue_limit: u32,
    /// Attempts that may end a worker before the job is set aside.
    pub max_attempts: u32,
    /// How long a worker may take to acknowledge a cancel, at least; three of its steps where that is longer.
    pub cancel_limit: Duration,
    pub(super) health: HealthLimits,
}

impl ProcessingConfig {
    #[must_use]
    pub fn new(queue_limit: u32, max_attempts: u32) -> Self {
        let cancel_limit = Duration::from_secs(5);
        Self { queue_limit, max_attempts, cancel_limit, health: HealthLimits::default() }
    }
}

/// Everything that running a job needs.
#[derive(Clone)]
pub struct Tools {
    pub store: Store,
    pub files: ArtifactFiles,
    pub workers: Workers,
    pub models: ModelHandle,
    pub loader: Loader,
    pub memory: MemoryHandle,
    pub planner: Arc<dyn Planner>,
    pub finisher: Arc<dyn Finisher>,
    pub clock: Clock,
}

/// A checked request on its way in.
#[derive(Clone, PartialEq, Debug)]
pub struct NewRequest {
    pub request: ResolvedRequest,
    pub warnings: Vec<Detail>,
    pub idempotency: Option<Idempotency>,
}

/// A submission's answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Submission {
    Accepted(Job),
    /// The idempotency key came before with the same request.
    Replayed(Job),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ProcessingHandle {
    context: Arc<Context>,
    events: mpsc::Sender<Event>,
    board: watch::Receiver<Board>,
    /// Devices that take jobs without a pin.
    default_devices: Arc<[DeviceId]>,
}

impl ProcessingHandle {
    /// Takes up what an earlier boot left: running jobs are queued again as a new attempt, at once. `devices` in order of
    /// preference; jobs without a pin go to the first `default_devices`.
    pub async fn start(
        config: ProcessingConfig,
        tools: Tools,
        devices: Vec<DeviceId>,
        default_devices: usize,
    ) -> Result<Self, ErrorBody> {
        let recovered = tools.store.recover(tools.clock.stamp()).await?;
        if !recovered.requeued.is_empty() {
            tracing::info!(
                jobs = recovered.requeued.len(),
                "jobs of an earlier run are queued again"
            );
        }
        let queued = tools.store.queued().await?;
        let live = Live::new();
        let context = Arc::new(Context { config, tools, live, pace: Pace::default() });
        let (events, inbox) = mpsc::channel(64);
        let (publish, board) = watch::channel(Board::default());
        let defaults = devices.iter().take(default_devices).cloned().collect();
        let actor = Actor::new(
            Arc::clone(&context),
            devices,
            default_devices,
            queued,
            (events.clone(), inbox),
            publish,
        );
        tokio::spawn(actor.run());
        Ok(Self { context, events, board, default_devices: defaults })
    }

    /// Stores a job; from the moment this returns it survives anything.
    pub async fn submit(&self, new: NewRequest) -> Result<Submission, ErrorBody> {
        let tools = &self.context.tools;
        let id = JobId::mint();
        let pin = new.request.device.clone().map(DeviceId);
        let model = new.request.model.clone();
        self.refuse_broken(&model, pin.as_ref())?;
        let submitted = tools.store.submit(NewJob {
            id,
            owner: "local".to_owned(),
            kind: new.request.kind.clone(),
            request: new.request,
            warnings: new.warnings,
            created_at: tools.clock.stamp(),
            idempotency: new.idempotency,
            queue_limit: self.context.config.queue_limit,
        });
        match submitted.await? {
            Submitted::New { events } => {
                self.context.live.committed(events);
                let _ = self.events.send(Event::Enqueued(Waiting { job: id, model, pin })).await; // stopping: it waits in the store
                Ok(Submission::Accepted(self.job(id).await?))
            }
            Submitted::Replayed { job } => Ok(Submission::Replayed(self.job(job).await?)),
            Submitted::Conflict => Err(ProcessingError::KeyReused.into()),
            Submitted::QueueFull { queued } => Err(ProcessingError::QueueFull { queued }.into()),
        }
    }

    pub async fn job(&self, id: JobId) -> Result<Job, ErrorBody> {
        let stored = self.context.tools.store.job(id).await?;
        let stored = stored.ok_or(ProcessingError::NotFound(id))?;
        let progress =
            if stored.state.is_terminal() { Default::default() } else { self.context.live.of(id) };
        Ok(stored.into_job(progress))
    }

    /// Newest first.
    pub async fn jobs(
        &self,
        state: Option<JobState>,
        cursor: Option<String>,
        limit: u32,
    ) -> Result<List<Job>, ErrorBody> {
        let (stored, next) = self.context.tools.store.jobs(state, cursor, limit).await?;
        let jobs = stored.into_iter().map(|job| {
            let progress = self.context.live.of(job.id);
            job.into_job(progress)
        });
        Ok(List::new(jobs.collect(), next))
    }

    /// The wish is durable before the worker hears of it.
    pub async fn cancel(&self, id: JobId) -> Result<Job, ErrorBody> {
        let tools = &self.context.tools;
        match tools.store.request_cancel(id, tools.clock.stamp()).await? {
            CancelOutcome::Cancelled { events } => {
                self.context.live.committed(events);
                let _ = self.events.send(Event::Removed { job: id }).await; // stopping: the store knows
            }
            CancelOutcome::Requested | CancelOutcome::AlreadyRequested => {
                let _ = self.events.send(Event::Cancel { job: id }).await; // stopping: the store knows
            }
            CancelOutcome::Ended(state) => return Err(ProcessingError::Ended(state).into()),
            CancelOutcome::NotFound => return Err(ProcessingError::NotFound(id).into()),
        }
        self.job(id).await
    }

    /// The job once it has ended, or as it is when `limit` is over.
    pub async fn wait(&self, id: JobId, limit: Duration) -> Result<Job, ErrorBody> {
        let until = Instant::now() + limit;
        let mut events = self.context.live.subscribe();
        loop {
            let job = self.job(id).await?;
            if job.state.is_terminal() {
                return Ok(job);
            }
            loop {
                match timeout_at(until, events.recv()).await {
                    Err(_) => return self.job(id).await,
                    Ok(Ok(event)) if event.job == id && event.kind == EventKind::End => break,
                    Ok(Ok(_)) => {}
                    Ok(Err(broadcast::error::RecvError::Lagged(_))) => break,
                    Ok(Err(broadcast::error::RecvError::Closed)) => return self.job(id).await,
                }
            }
        }
    }

    /// Stored events after `after`, then live ones; see `Node::events`.
    pub async fn events(
        &self,
        job: Option<JobId>,
        after: Option<u64>,
    ) -> Result<mpsc::Receiver<StreamEvent>, ErrorBody> {
        if let Some(id) = job {
            self.job(id).await?;
        }
        // Subscribed before the store is read, so that nothing falls between the two.
        let live = self.context.live.subscribe();
        let (sender, receiver) = mpsc::channel(64);
        let replay = job.is_some() || after.is_some();
        let follower = Follower { handle: self.clone(), job, sender, seen: after.unwrap_or(0) };
        tokio::spawn(follower.run(live, replay));
        Ok(receiver)
    }

    /// An output and the absolute path of its file.
    pub async fn artifact(&self, id: ArtifactId) -> Result<(Artifact, PathBuf), ErrorBody> {
        let tools = &self.context.tools;
        let stored = tools.store.artifact(id).await?.ok_or(ProcessingError::NoArtifact(id))?;
        let path = tools.files.path(&stored.path)?;
        Ok((stored.artifact, path))
    }

    /// What runs where.
    #[must_use]
    pub fn running(&self) -> BTreeMap<DeviceId, JobId> {
        self.board.borrow().running.clone()
    }

    /// Devices on which nothing is started until a canary has returned.
    #[must_use]
    pub fn quarantined(&self) -> Vec<DeviceId> {
        self.board.borrow().health.quarantined.clone()
    }

    /// A model that just ended several workers everywhere that the job could run is refused at once, rather than after a
    /// wait that would end the same way.
    fn refuse_broken(&self, model: &str, pin: Option<&DeviceId>) -> Result<(), ProcessingError> {
        let board = self.board.borrow();
        let until =
            |device: &DeviceId| board.health.open.get(&(device.clone(), model.to_owned())).copied();
        let places: Vec<_> = match pin {
            Some(device) => vec![until(device)],
            None => self.default_devices.iter().map(until).collect(),
        };
        let all: Option<Vec<Instant>> = places.into_iter().collect();
        match all.and_then(|untils| untils.into_iter().min()) {
            None => Ok(()),
            Some(until) => {
                let retry_after = until.saturating_duration_since(Instant::now());
                Err(ProcessingError::ModelBroken { model: model.to_owned(), retry_after })
            }
        }
    }

    #[must_use]
    pub fn queued(&self) -> usize {
        self.context.live.positions.borrow().len()
    }

    /// Starts no more jobs and returns when none is running. Those who run end because their workers are being ended; they
    /// are found again at the next start.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.events.send(Event::Stop { reply }).await.is_ok() {
            let _ = stopped.await; // an actor that is gone has stopped
        }
    }
}

impl std::fmt::Debug for ProcessingHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProcessingHandle")
    }
}

/// Feeds one listener: first what is stored, then what happens.
struct Follower {
    handle: ProcessingHandle,
    job: Option<JobId>,
    sender: mpsc::Sender<StreamEvent>,
    seen: u64,
}

/// Why a listener is no longer fed.
enum Fed {
    GoOn,
    Over,
}

impl Follower {
    async fn run(mut self, mut live: broadcast::Receiver<StreamEvent>, replay: bool) {
        if replay && matches!(self.replay().await, Fed::Over) {
            return;
        }
        loop {
            let fed = match live.recv().await {
                Ok(event) if self.job.is_none_or(|job| job == event.job) => self.feed(event).await,
                Ok(_) => Fed::GoOn,
                // Too slow for the live stream: what is durable is read again from the store, progress is lost.
                Err(broadcast::error::RecvError::Lagged(_)) => self.replay().await,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if matches!(fed, Fed::Over) {
                return;
            }
        }
    }

    async fn replay(&mut self) -> Fed {
        loop {
            let page = self.handle.context.tools.store.events_after(self.job, self.seen, 500).await;
            let Ok(page) = page else { return Fed::Over };
            if page.is_empty() {
                return self.end_of_an_ended_job().await;
            }
            for event in page {
                if matches!(self.feed_stored(event).await, Fed::Over) {
                    return Fed::Over;
                }
            }
        }
    }

    /// A listener who had already seen the `end` asks again: it is sent again rather than waiting for ever.
    async fn end_of_an_ended_job(&mut self) -> Fed {
        let Some(id) = self.job else { return Fed::GoOn };
        match self.handle.job(id).await {
            Ok(job) if job.state.is_terminal() => {
                let end = StreamEvent {
                    id: Some(self.seen),
                    job: id,
                    kind: EventKind::End,
                    data: serde_json::to_value(job).unwrap_or_default(),
                };
                let _ = self.sender.send(end).await; // the listener may have left
                Fed::Over
            }
            Ok(_) => Fed::GoOn,
            Err(_) => Fed::Over,
        }
    }

    async fn feed_stored(&mut self, event: StoredEvent) -> Fed {
        self.feed(event.into()).await
    }

    async fn feed(&mut self, mut event: StreamEvent) -> Fed {
        if let Some(id) = event.id {
            if id <= self.seen {
                return Fed::GoOn;
            }
            self.seen = id;
        }
        let is_end = event.kind == EventKind::End;
        if is_end {
            match self.handle.job(event.job).await {
                Ok(job) => event.data = serde_json::to_value(job).unwrap_or_default(),
                Err(_) => return Fed::Over,
            }
        }
        if self.sender.send(event).await.is_err() || (is_end && self.job.is_some()) {
            return Fed::Over;
        }
        Fed::GoOn
    }
}
