//! One attempt at one job: claim, load, draw each picture, finish. Waits for the worker so that the queue never has to.
//!
//! However it ends, exactly one guarded write says so: the job is finalised or queued again, and what comes later from the
//! same attempt changes nothing.

mod picture;

use super::handle::{ProcessingConfig, Tools};
use super::live::Live;
use super::pace::Pace;
use super::tally::{Tally, tenth};
use crate::model::Loaded;
use crate::store::{
    AttemptOutcome, Claim, EndState, Ending, Finalised, NewArtifact, Requeued, StoreError,
    StoredJob,
};
use crate::worker::{Blame, StartProgress, WorkerHandle};
use atelier_protocol::http::{Progress, ResolvedRequest};
use atelier_protocol::{Detail, DeviceId, ErrorBody, ErrorCode, JobId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What every attempt shares.
pub(super) struct Context {
    pub(super) config: ProcessingConfig,
    pub(super) tools: Tools,
    pub(super) live: Live,
    pub(super) pace: Pace,
}

/// How an attempt left its job.
pub(super) struct Ended {
    /// Queued again; what was finished need not be drawn again on the same device. None: ended, or no longer ours.
    pub(super) again: Option<Kept>,
    pub(super) verdict: Verdict,
}

/// What the attempt says about its model on its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Drawn,
    /// The worker is gone and is to blame itself.
    WorkerLost,
    Undecided,
}

impl Ended {
    fn over(verdict: Verdict) -> Self {
        Self { again: None, verdict }
    }
}

/// Finished pictures of a job that goes on.
#[derive(Default)]
pub(super) struct Kept {
    device: Option<DeviceId>,
    pictures: Vec<NewArtifact>,
}

/// Why drawing stopped before the last picture was there.
enum Stop {
    Cancelled,
    Failed(ErrorBody),
    /// The worker is gone; another one may succeed.
    WorkerGone(ErrorBody),
}

impl From<ErrorBody> for Stop {
    fn from(error: ErrorBody) -> Self {
        match error.code {
            ErrorCode::WorkerCrashed
            | ErrorCode::WorkerUnresponsive
            | ErrorCode::WorkerStarting
            | ErrorCode::ProtocolViolation
            | ErrorCode::NodeStopping => Self::WorkerGone(error),
            _ => Self::Failed(error),
        }
    }
}

/// Workers that one job may lose, whoever is to blame: an end to what would never end.
const MAX_LOSSES: usize = 10;
/// Pause between tries while the store cannot be written, such as with a full disk.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How long a claim would hold against other nodes that share the store; this one renews nothing while it is alone.
const LEASE: Duration = Duration::from_secs(3600);
/// How often a start is looked at for its progress.
const START_LOOK: Duration = Duration::from_millis(500);

struct Attempt<'a> {
    context: &'a Context,
    id: JobId,
    number: u32,
    device: DeviceId,
    request: ResolvedRequest,
    cancelled: watch::Receiver<bool>,
    pictures: Vec<NewArtifact>,
    tally: Tally,
    /// Why earlier attempts lost their worker.
    losses: Vec<ErrorBody>,
    created_at: String,
}

pub(super) async fn run(
    context: &Arc<Context>,
    id: JobId,
    device: DeviceId,
    cancelled: watch::Receiver<bool>,
    kept: Kept,
) -> Ended {
    let tools = &context.tools;
    let claimed = tools.store.claim(id, tools.clock.stamp(), tools.clock.stamp_in(LEASE)).await;
    let stored = match claimed {
        Ok(Claim::Claimed { attempt, events }) => {
            context.live.committed(events);
            tools.store.job(id).await.map(|job| job.map(|job| (attempt, job)))
        }
        Ok(Claim::NotQueued) => return Ended::over(Verdict::Undecided),
        Err(error) => Err(error),
    };
    let (number, stored) = match stored {
        Ok(Some(found)) => found,
        Ok(None) => return Ended::over(Verdict::Undecided),
        Err(error) => {
            tracing::error!(job = %id, "a job cannot be claimed: {error}");
            tokio::time::sleep(STORE_PAUSE).await;
            return Ended { again: Some(kept), verdict: Verdict::Undecided };
        }
    };
    let pictures = if kept.device.as_ref() == Some(&device) { kept.pictures } else { Vec::new() };
    let mut attempt = Attempt::new(context, stored, number, device, cancelled, pictures);
    tracing::info!(job = %id, attempt = number, device = %attempt.device, "job starts");
    let drawn = attempt.draw().await;
    context.live.forget(id);
    attempt.conclude(drawn).await
}

impl<'a> Attempt<'a> {
    fn new(
        context: &'a Context,
        stored: StoredJob,
        number: u32,
        device: DeviceId,
        cancelled: watch::Receiver<bool>,
        pictures: Vec<NewArtifact>,
    ) -> Self {
        let done = u32::try_from(pictures.len()).unwrap_or(u32::MAX);
        let mut tally = Tally::new(stored.request.steps, stored.request.count, done);
        let now = context.tools.clock.now();
        tally.timings.queue_ms = since(&stored.created_at, now);
        let losses = stored.attempts.into_iter().filter_map(|attempt| attempt.cause);
        let losses = losses.filter(|cause| cause.code != ErrorCode::NodeStopping).collect();
        Self {
            context,
            id: stored.id,
            number,
            device,
            request: stored.request,
            cancelled,
            pictures,
            tally,
            losses,
            created_at: stored.created_at,
        }
    }

    async fn draw(&mut self) -> Result<(), Stop> {
        let tools = &self.context.tools;
        let model = tools.models.resolve(Some(&self.request.model)).map_err(ErrorBody::from)?;
        let worker = tools.workers.get(&self.device).cloned().ok_or_else(|| {
            ErrorBody::new(
                ErrorCode::DeviceNotFound,
                format!("{} has no worker on this node", self.device),
            )
        })?;
        self.until_ready(&worker).await?;
        self.note(phase("load"));
        // In a task of its own: a cancelled job stops waiting, and what is being loaded is there for the next one.
        let (loader, device) = (tools.loader.clone(), self.device.clone());
        let load = {
            let model = Arc::clone(&model);
            tokio::spawn(async move { loader.ensure(&model, &device).await })
        };
        let mut cancelled = self.cancelled.clone();
        let loaded: Loaded = tokio::select! {
            loaded = load => loaded.map_err(|error| {
                ErrorBody::new(ErrorCode::Internal, format!("the loading task ended: {error}"))
            })??,
            () = cancel_asked(&mut cancelled) => return Err(Stop::Cancelled),
        };
        self.tally.timings.load_ms = Some(tenth(loaded.load_ms));
        let first = u32::try_from(self.pictures.len()).unwrap_or(u32::MAX);
        for index in first..self.request.count {
            let picture = self.draw_picture(index, &model, &worker, &loaded).await?;
            self.pictures.push(picture);
            if *self.cancelled.borrow() {
                return Err(Stop::Cancelled);
            }
        }
        Ok(())
    }

    /// Waits for a worker and shows what its start is busy with.
    async fn until_ready(&mut self, worker: &WorkerHandle) -> Result<(), Stop> {
        let ready = worker.ready();
        tokio::pin!(ready);
        let mut cancelled = self.cancelled.clone();
        loop {
            tokio::select! {
                epoch = &mut ready => {
                    // A worker that cannot start was tried again by its supervisor; the job would not help.
                    epoch.map_err(|error| match error.code {
                        ErrorCode::NodeStopping => Stop::WorkerGone(error),
                        _ => Stop::Failed(error),
                    })?;
                    let pid = worker.view().pid;
                    let store = &self.context.tools.store;
                    let assigned = store.assign(self.id, self.number, self.device.clone(), pid).await;
                    if let Err(error) = assigned {
                        tracing::warn!(job = %self.id, "the worker of an attempt was not noted: {error}");
                    }
                    return Ok(());
                }
                () = cancel_asked(&mut cancelled) => return Err(Stop::Cancelled),
                () = tokio::time::sleep(START_LOOK) => self.note(match worker.view().starting {
                    Some(StartProgress::Install { done_bytes, total_bytes }) => Progress {
                        phase: Some("install".to_owned()),
                        step: Some(u32::try_from(done_bytes >> 20).unwrap_or(u32::MAX)),
                        steps: total_bytes.map(|all| u32::try_from(all >> 20).unwrap_or(u32::MAX)),
                        ..Progress::default()
                    },
                    Some(StartProgress::Import) | None => phase("starting"),
                }),
            }
        }
    }

    fn note(&self, progress: Progress) {
        self.context.live.progress(self.id, progress);
    }

    async fn conclude(mut self, drawn: Result<(), Stop>) -> Ended {
        let cancelled = *self.cancelled.borrow();
        match drawn {
            Ok(()) => {
                let artifacts = std::mem::take(&mut self.pictures);
                let (state, outcome) = (EndState::Succeeded, AttemptOutcome::Succeeded);
                self.finalise(state, outcome, artifacts, None, None).await;
                Ended::over(Verdict::Drawn)
            }
            Err(Stop::Cancelled) => {
                self.finalise_cancelled(None).await;
                Ended::over(Verdict::Undecided)
            }
            Err(Stop::Failed(error)) => {
                let (state, outcome) = (EndState::Failed, AttemptOutcome::Failed);
                self.finalise(state, outcome, Vec::new(), Some(error.clone()), Some(error)).await;
                Ended::over(Verdict::Undecided)
            }
            Err(Stop::WorkerGone(cause)) => self.conclude_loss(cause, cancelled).await,
        }
    }

    /// The worker is gone: whether the job is tried again depends on who is to blame, and how often before.
    async fn conclude_loss(mut self, cause: ErrorBody, cancelled: bool) -> Ended {
        let blame = Blame::of(&cause);
        let verdict = match blame {
            Blame::Worker => Verdict::WorkerLost,
            Blame::Outside | Blame::Memory => Verdict::Undecided,
        };
        if cancelled {
            self.finalise_cancelled(Some(cause)).await;
            return Ended::over(verdict);
        }
        if cause.code == ErrorCode::NodeStopping {
            self.requeue(cause).await; // found in the store by the next start
            return Ended::over(verdict);
        }
        self.losses.push(cause.clone());
        let own = self.losses.iter().filter(|loss| Blame::of(loss) == Blame::Worker).count();
        let too_many = own >= self.context.config.max_attempts as usize;
        if !too_many && self.losses.len() < MAX_LOSSES {
            return Ended { again: self.requeue(cause).await, verdict };
        }
        let error = self.set_aside();
        let (state, outcome) = (EndState::Failed, AttemptOutcome::Lost);
        self.finalise(state, outcome, Vec::new(), Some(error), Some(cause)).await;
        Ended::over(verdict)
    }

    fn set_aside(&self) -> ErrorBody {
        let details = self.losses.iter().zip(1..).map(|(loss, number)| {
            Detail::new(format!("loss {number}"), format!("{}: {}", loss.code, loss.message))
        });
        let count = self.losses.len();
        ErrorBody::new(
            ErrorCode::ProcessingSetAside,
            format!("the job was set aside after it lost {count} workers"),
        )
        .with_details(details.collect())
    }

    async fn finalise_cancelled(self, cause: Option<ErrorBody>) {
        let (state, outcome) = (EndState::Cancelled, AttemptOutcome::Cancelled);
        self.finalise(state, outcome, Vec::new(), None, cause).await;
    }

    async fn finalise(
        mut self,
        state: EndState,
        outcome: AttemptOutcome,
        artifacts: Vec<NewArtifact>,
        error: Option<ErrorBody>,
        cause: Option<ErrorBody>,
    ) {
        let tools = &self.context.tools;
        self.tally.timings.total_ms = since(&self.created_at, tools.clock.now());
        let timings = self.tally.timings.clone();
        let ending = Ending { state, artifacts, error, timings, outcome, cause };
        let (id, attempt) = (self.id, self.number);
        let finalised =
            insist(id, || tools.store.finalise(id, attempt, ending.clone(), tools.clock.stamp()));
        match finalised.await {
            Finalised::Done { events } => {
                tracing::info!(job = %id, attempt, ?state, "job ended");
                self.context.live.committed(events);
            }
            Finalised::Stale => tracing::warn!(job = %id, attempt, "a late end changes nothing"),
        }
    }

    /// Closes this attempt and queues the job again; gives what the next attempt need not draw.
    async fn requeue(self, cause: ErrorBody) -> Option<Kept> {
        let tools = &self.context.tools;
        tracing::warn!(job = %self.id, attempt = self.number, code = %cause.code, "job is tried again: {cause}");
        let (id, attempt) = (self.id, self.number);
        let requeued = insist(id, || {
            let (cause, now) = (Some(cause.clone()), tools.clock.stamp());
            tools.store.requeue(id, attempt, AttemptOutcome::Lost, cause, now)
        });
        match requeued.await {
            Requeued::Yes { events } => {
                self.context.live.committed(events);
                Some(Kept { device: Some(self.device), pictures: self.pictures })
            }
            Requeued::Cancelled { events } => {
                self.context.live.committed(events);
                None
            }
            Requeued::Stale => None,
        }
    }
}

/// Writes until it is written: an end that is not stored has not happened.
async fn insist<T, F>(id: JobId, mut write: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match write().await {
            Ok(done) => return done,
            Err(error) => tracing::error!(job = %id, "a job's end cannot be stored yet: {error}"),
        }
        tokio::time::sleep(STORE_PAUSE).await;
    }
}

fn phase(word: &str) -> Progress {
    Progress { phase: Some(word.to_owned()), ..Progress::default() }
}

/// Returns when the cancel flag is set; never if it never is.
async fn cancel_asked(cancelled: &mut watch::Receiver<bool>) {
    if cancelled.wait_for(|asked| *asked).await.is_err() {
        std::future::pending().await
    }
}

fn since(start: &str, now: jiff::Timestamp) -> Option<f64> {
    let start: jiff::Timestamp = start.parse().ok()?;
    Some(tenth(now.duration_since(start).as_secs_f64().max(0.0) * 1000.0))
}
