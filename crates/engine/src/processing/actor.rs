//! The task that owns the queue: starts attempts, hears of their end, passes cancels on. Decides through [`Queue`].

use super::attempt::{self, Context, End, Kept};
use super::queue::Queue;
use crate::store::QueuedJob;
use atelier_protocol::{DeviceId, JobId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Every way in which the queue changes.
pub(super) enum Event {
    Enqueued {
        job: JobId,
        pin: Option<DeviceId>,
    },
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
        end: End,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

struct Running {
    cancel: watch::Sender<bool>,
    pin: Option<DeviceId>,
}

pub(super) struct Actor {
    context: Arc<Context>,
    queue: Queue,
    running: HashMap<JobId, Running>,
    /// Pictures that an ended attempt had finished, for the next one.
    kept: HashMap<JobId, Kept>,
    inbox: mpsc::Receiver<Event>,
    events: mpsc::Sender<Event>,
    busy: watch::Sender<BTreeMap<DeviceId, JobId>>,
    stopping: Option<oneshot::Sender<()>>,
}

impl Actor {
    pub(super) fn new(
        context: Arc<Context>,
        devices: Vec<DeviceId>,
        default_devices: usize,
        queued: Vec<QueuedJob>,
        (events, inbox): (mpsc::Sender<Event>, mpsc::Receiver<Event>),
        busy: watch::Sender<BTreeMap<DeviceId, JobId>>,
    ) -> Self {
        let mut queue = Queue::new(devices, default_devices);
        for job in queued {
            queue.push(job.id, job.device);
        }
        let (running, kept) = (HashMap::new(), HashMap::new());
        Self { context, queue, running, kept, inbox, events, busy, stopping: None }
    }

    pub(super) async fn run(mut self) {
        self.dispatch();
        while let Some(event) = self.inbox.recv().await {
            match event {
                Event::Enqueued { job, pin } => self.queue.push(job, pin),
                Event::Removed { job } => self.queue.remove(job),
                Event::Cancel { job } => {
                    if let Some(running) = self.running.get(&job) {
                        running.cancel.send_replace(true);
                    }
                }
                Event::Ended { job, device, end } => self.on_ended(job, &device, end),
                Event::Stop { reply } => self.stopping = Some(reply),
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

    fn on_ended(&mut self, job: JobId, device: &DeviceId, end: End) {
        self.queue.finished(device);
        let running = self.running.remove(&job);
        match end {
            End::Over => {}
            End::Again { kept } => {
                self.kept.insert(job, kept);
                self.queue.push_front(job, running.and_then(|running| running.pin));
            }
        }
    }

    fn dispatch(&mut self) {
        while let Some((waiting, device)) = self.queue.start_next() {
            let (cancel, cancelled) = watch::channel(false);
            let job = waiting.job;
            self.running.insert(job, Running { cancel, pin: waiting.pin });
            let kept = self.kept.remove(&job).unwrap_or_default();
            let (context, events) = (Arc::clone(&self.context), self.events.clone());
            tokio::spawn(async move {
                let end = attempt::run(&context, job, device.clone(), cancelled, kept).await;
                let _ = events.send(Event::Ended { job, device, end }).await; // the node may have stopped
            });
        }
        self.publish();
    }

    fn publish(&self) {
        self.context.live.positions.send_replace(self.queue.positions());
        self.busy.send_replace(self.queue.running());
    }
}
