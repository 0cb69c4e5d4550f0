//! The one task that keeps the ledger: receives, decides through it, publishes, replies.

use super::handle::Reservation;
use super::ledger::Ledger;
use super::observer::{Observation, Observer};
use super::{AllocationId, MemoryError, MemoryView, Owner};
use crate::clock::Clock;
use crate::device::Device;
use atelier_protocol::{Bytes, DeviceId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Between two looks at the system.
const OBSERVE_EVERY: Duration = Duration::from_secs(2);

pub(super) enum Command {
    Reserve {
        device: DeviceId,
        owner: Owner,
        asked: Bytes,
        reply: oneshot::Sender<Result<Reservation, MemoryError>>,
    },
    Settle {
        id: AllocationId,
        reply: oneshot::Sender<()>,
    },
    Observe {
        reply: oneshot::Sender<()>,
    },
}

/// One answer a device, in the order of the devices.
type Report = Vec<(DeviceId, Option<Observation>)>;

/// Somebody who needs a report that was begun after they asked.
struct Waiter {
    settle: Option<AllocationId>,
    reply: oneshot::Sender<()>,
}

pub(super) struct MemoryActor {
    ledger: Ledger,
    devices: Arc<[Device]>,
    observer: Arc<dyn Observer>,
    clock: Clock,
    view: watch::Sender<MemoryView>,
    /// Given to every reservation, so that its drop finds the way back.
    release: mpsc::UnboundedSender<AllocationId>,
    /// Of the look that is under way, and of the one after it.
    served_now: Vec<Waiter>,
    served_next: Vec<Waiter>,
    /// At most one look at a time: a driver that hangs must not collect threads.
    looking: JoinSet<Report>,
    silent: BTreeSet<DeviceId>,
}

impl MemoryActor {
    pub(super) fn new(
        devices: &[Device],
        observer: Arc<dyn Observer>,
        clock: Clock,
        view: watch::Sender<MemoryView>,
        release: mpsc::UnboundedSender<AllocationId>,
    ) -> Self {
        Self {
            ledger: Ledger::new(devices.iter().map(|device| (device.id.clone(), device.memory))),
            devices: devices.into(),
            observer,
            clock,
            view,
            release,
            served_now: Vec::new(),
            served_next: Vec::new(),
            looking: JoinSet::new(),
            silent: BTreeSet::new(),
        }
    }

    /// Ends when the last handle is dropped. What reservations release after that was the ledger's,
    /// which is gone.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        mut released: mpsc::UnboundedReceiver<AllocationId>,
    ) {
        let mut tick = tokio::time::interval(OBSERVE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                command = inbox.recv() => {
                    let Some(command) = command else { break };
                    // Whoever drops a reservation and then asks for another must find the first one
                    // gone.
                    while let Ok(id) = released.try_recv() {
                        self.ledger.release(id);
                    }
                    self.handle(command);
                }
                Some(id) = released.recv() => {
                    self.ledger.release(id);
                    self.publish();
                }
                Some(report) = self.looking.join_next() => self.enter(report.unwrap_or_default()),
                _ = tick.tick() => self.look(),
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Reserve { device, owner, asked, reply } => {
                let outcome =
                    self.ledger.reserve(&device, owner, asked, self.clock.stamp()).map(|id| {
                        Reservation { id, device, bytes: asked, release: self.release.clone() }
                    });
                self.publish(); // publish, then reply: callers read their own writes
                // The caller may have left; the reservation then drops here and releases itself.
                let _ = reply.send(outcome);
            }
            Command::Settle { id, reply } => {
                self.served_next.push(Waiter { settle: Some(id), reply });
                self.look();
            }
            Command::Observe { reply } => {
                self.served_next.push(Waiter { settle: None, reply });
                self.look();
            }
        }
    }

    fn look(&mut self) {
        if !self.looking.is_empty() {
            return;
        }
        self.served_now = std::mem::take(&mut self.served_next);
        let (devices, observer) = (Arc::clone(&self.devices), Arc::clone(&self.observer));
        self.looking.spawn_blocking(move || {
            let ask = |device: &Device| match observer.observe(device) {
                Ok(seen) => (device.id.clone(), Some(seen)),
                Err(error) => {
                    tracing::debug!(device = %device.id, %error, "memory not observed");
                    (device.id.clone(), None)
                }
            };
            devices.iter().map(ask).collect()
        });
    }

    fn enter(&mut self, report: Report) {
        for (device, seen) in report {
            // Once per silence: a driver that is gone must not fill the log.
            let news = match seen {
                Some(_) => self.silent.remove(&device).then_some("answers again"),
                None => self.silent.insert(device.clone()).then_some("does not answer"),
            };
            if let Some(news) = news {
                tracing::warn!(%device, "device {news} when asked for its memory");
            }
            self.ledger.observe(&device, seen);
        }
        let served = std::mem::take(&mut self.served_now);
        for waiter in &served {
            if let Some(id) = waiter.settle {
                self.ledger.settle(id);
            }
        }
        self.publish();
        for waiter in served {
            let _ = waiter.reply.send(()); // the caller may have left
        }
        if !self.served_next.is_empty() {
            self.look();
        }
    }

    fn publish(&self) {
        self.view.send_modify(|view| {
            *view = MemoryView {
                generation: view.generation + 1,
                entries: self.ledger.rows().into(),
                allocations: self.ledger.allocations().into(),
            };
        });
    }
}
