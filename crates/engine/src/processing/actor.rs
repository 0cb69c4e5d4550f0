//! The task that owns the queue: starts attempts, hears of their end, passes cancels on, leaves broken models alone.
//! Decides through [`Queue`] and [`Health`].

use super::attempt::{self, Context, Ended, Kept, Verdict};
use super::health::{Change, Health, HealthView};
use super::queue::{Queue, Waiting};
use crate::store::QueuedJob;
use atelier_protocol::{DeviceId, JobId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

/// Every way in which the queue changes.
pub(super) enum Event {
    Enqueued(Waiting),
    /// It was cancelled while it waited.
    Removed {
        job: JobId,
    },
    /// Its cancel was stored while it runs.
    Cancel {
        job: JobId,
    },
    Ended {
        job: JobId,
        device: DeviceId,
        ended: Ended,
    },
    /// A canary came back from a device that was left alone.
    Canary {
        device: DeviceId,
        alive: bool,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

struct Running {
    cancel: watch::Sender<bool>,
    waiting: Waiting,
}

/// What the actor publishes after every change.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    pub(super) running: BTreeMap<DeviceId, JobId>,
    pub(super) health: HealthView,
}

pub(super) struct Actor {
    context: Arc<Context>,
    queue: Queue,
    health: Health,
    running: HashMap<JobId, Running>,
    /// Pictures that an ended attempt had finished, for the next one.
    kept: HashMap<JobId, Kept>,
    inbox: mpsc::Receiver<Event>,
    events: mpsc::Sender<Event>,
    board: watch::Sender<Board>,
    stopping: Option<oneshot::Sender<()>>,
}

impl Actor {
    pub(super) fn new(
        context: Arc<Context>,
        devices: Vec<DeviceId>,
        default_devices: usize,
        queued: Vec<QueuedJob>,
        (events, inbox): (mpsc::Sender<Event>, mpsc::Receiver<Event>),
        board: watch::Sender<Board>,
    ) -> Self {
        let mut queue = Queue::new(devices, default_devices);
        for QueuedJob { id, device, model, .. } in queued {
            queue.push(Waiting { job: id, model, pin: device });
        }
        let health = Health::new(context.config.health);
        let (running, kept) = (HashMap::new(), HashMap::new());
        Self { context, queue, health, running, kept, inbox, events, board, stopping: None }
    }

    pub(super) async fn run(mut self) {
        self.dispatch();
        while let Some(event) = self.next().await {
            match event {
                Wake::Event(Event::Enqueued(waiting)) => self.queue.push(waiting),
                Wake::Event(Event::Removed { job }) => self.queue.remove(job),
                Wake::Event(Event::Cancel { job }) => {
                    if let Some(running) = self.running.get(&job) {
                        running.cancel.send_replace(true);
                    }
                }
                Wake::Event(Event::Ended { job, device, ended }) => {
                    self.on_ended(job, &device, ended);
                }
                Wake::Event(Event::Canary { device, alive }) => {
                    tell(self.health.canary_returned(&device, alive, Instant::now()));
                }
                Wake::Event(Event::Stop { reply }) => self.stopping = Some(reply),
                Wake::Due => self.send_canaries(),
            }
            if self.stopping.is_none() {
                self.dispatch();
            } else if self.running.is_empty() {
                break;
            }
            self.publish();
        }
        if let Some(reply) = self.stopping {
            let _ = reply.send(()); // the asker may have left
        }
    }

    async fn next(&mut self) -> Option<Wake> {
        let due = self.health.next_deadline().filter(|_| self.stopping.is_none());
        tokio::select! {
            event = self.inbox.recv() => event.map(Wake::Event),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Some(Wake::Due),
        }
    }

    fn on_ended(&mut self, job: JobId, device: &DeviceId, ended: Ended) {
        self.queue.finished(device);
        let Some(Running { waiting, .. }) = self.running.remove(&job) else { return };
        match ended.verdict {
            Verdict::Drawn => tell(self.health.succeeded(device, &waiting.model)),
            Verdict::WorkerLost => {
                tell(self.health.lost(device, &waiting.model, Instant::now()));
            }
            Verdict::Undecided => self.health.undecided(device, &waiting.model),
        }
        if let Some(kept) = ended.again {
            self.kept.insert(job, kept);
            self.queue.push_front(waiting);
        }
    }

    fn dispatch(&mut self) {
        while let Some((waiting, device)) =
            self.queue.start_next(|device, model| self.health.allows(device, model))
        {
            let (cancel, cancelled) = watch::channel(false);
            let job = waiting.job;
            self.health.started(&device, &waiting.model);
            self.running.insert(job, Running { cancel, waiting });
            let kept = self.kept.remove(&job).unwrap_or_default();
            let (context, events) = (Arc::clone(&self.context), self.events.clone());
            tokio::spawn(async move {
                let ended = attempt::run(&context, job, device.clone(), cancelled, kept).await;
                let _ = events.send(Event::Ended { job, device, ended }).await; // the node may have stopped
            });
        }
        self.publish();
    }

    /// Asks devices that were left alone for a sign of life, before a job is risked there.
    fn send_canaries(&mut self) {
        for device in self.health.canaries_due(Instant::now()) {
            let (workers, events) = (self.context.tools.workers.clone(), self.events.clone());
            tokio::spawn(async move {
                let alive = workers.probe(&device).await;
                if let Err(error) = &alive {
                    tracing::warn!(%device, "canary failed: {error}");
                }
                let alive = alive.is_ok();
                let _ = events.send(Event::Canary { device, alive }).await; // the node may have stopped
            });
        }
    }

    fn publish(&self) {
        self.context.live.positions.send_replace(self.queue.positions());
        let board = Board { running: self.queue.running(), health: self.health.view() };
        self.board.send_replace(board);
    }
}

enum Wake {
    Event(Event),
    /// Some pause is over.
    Due,
}

fn tell(changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Opened { device, model, pause } => tracing::error!(
                %device, model, pause_s = pause.as_secs(), "the model ends its workers and is left alone"
            ),
            Change::Closed { device, model } => {
                tracing::info!(%device, model, "the model works again")
            }
            Change::Quarantined { device } => {
                tracing::error!(%device, "several models end their workers here: device in quarantine");
            }
            Change::Released { device } => tracing::info!(%device, "device out of quarantine"),
        }
    }
}
