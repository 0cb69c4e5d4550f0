//! The memory domain as everyone else sees it.

use super::actor::{Command, MemoryActor};
use super::{AllocationId, MemoryError, MemoryView, Observer, Owner};
use crate::clock::Clock;
use crate::device::Device;
use atelier_protocol::{Bytes, DeviceId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// How long somebody waits for the system's figures. A driver that hangs must not hold up the node:
/// what follows is then decided with the figures of before.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// Reads never wait; changes go through the inbox. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MemoryHandle {
    inbox: mpsc::Sender<Command>,
    view: watch::Receiver<MemoryView>,
}

/// A promise of memory. Dropping it gives the bytes back.
#[derive(Debug)]
#[must_use = "a reservation ends when it is dropped"]
pub struct Reservation {
    pub(super) id: AllocationId,
    pub(super) device: DeviceId,
    pub(super) bytes: Bytes,
    pub(super) release: mpsc::UnboundedSender<AllocationId>,
}

impl Reservation {
    #[must_use]
    pub fn id(&self) -> AllocationId {
        self.id
    }
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.device
    }
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let _ = self.release.send(self.id); // the ledger may have ended before us
    }
}

impl MemoryHandle {
    /// Keeps a ledger for these devices until the last handle is dropped, looking at the system now
    /// and then every two seconds. Returns after the first look, so that the first decision already
    /// knows what other programs use.
    pub async fn start(devices: &[Device], observer: Arc<dyn Observer>, clock: Clock) -> Self {
        let empty =
            MemoryView { generation: 0, entries: Arc::default(), allocations: Arc::default() };
        let (publish, view) = watch::channel(empty);
        let (inbox, commands) = mpsc::channel(64);
        #[expect(
            clippy::disallowed_methods,
            reason = "a dropped reservation cannot wait for room in a queue, and losing its release would lose the \
                      memory for as long as the node runs; there are never more of these than live reservations"
        )]
        let (release, released) = mpsc::unbounded_channel();
        let actor = MemoryActor::new(devices, observer, clock, publish, release);
        tokio::spawn(actor.run(commands, released));
        let handle = Self { inbox, view };
        handle.observe().await;
        handle
    }

    /// The latest published state. Never waits.
    #[must_use]
    pub fn view(&self) -> MemoryView {
        self.view.borrow().clone()
    }

    /// Wakes at every new generation.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<MemoryView> {
        self.view.clone()
    }

    /// Promises memory or says, with the arithmetic, why not.
    pub async fn reserve(
        &self,
        device: &DeviceId,
        owner: Owner,
        asked: Bytes,
    ) -> Result<Reservation, MemoryError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Reserve { device: device.clone(), owner, asked, reply };
        self.inbox.send(command).await.map_err(|_| MemoryError::Stopping)?;
        answer.await.map_err(|_| MemoryError::Stopping)?
    }

    /// Says that the owner has taken these bytes (the worker answered `loaded`), so that the
    /// system's figures contain them from now on. Returns once a report taken after this call is
    /// entered. Without it the bytes are counted on top of what the system reports, which errs on
    /// the safe side.
    pub async fn settle(&self, reservation: &Reservation) {
        let (reply, answer) = oneshot::channel();
        let sent = self.inbox.send(Command::Settle { id: reservation.id, reply }).await;
        if sent.is_ok() {
            // Too late is harmless: it is settled when the report comes. The node may also be
            // stopping.
            let _ = timeout(LOOK_LIMIT, answer).await;
        }
    }

    /// Looks at the system now. Returns once what was seen is published.
    pub async fn observe(&self) {
        let (reply, answer) = oneshot::channel();
        if self.inbox.send(Command::Observe { reply }).await.is_ok() {
            let _ = timeout(LOOK_LIMIT, answer).await; // the node may be stopping
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceKind, Usable};
    use crate::memory::{Observation, ObserverError, Pressure};
    use jiff::Timestamp;
    use std::sync::Mutex;

    /// A machine whose available memory the test sets.
    #[derive(Clone)]
    struct Gauge(Arc<Mutex<Option<Bytes>>>);

    impl Gauge {
        fn at(available: Bytes) -> Self {
            Self(Arc::new(Mutex::new(Some(available))))
        }
        fn set(&self, available: Option<Bytes>) {
            *self.0.lock().unwrap() = available;
        }
    }

    impl Observer for Gauge {
        fn observe(&self, _: &Device) -> Result<Observation, ObserverError> {
            let available = self.0.lock().unwrap().ok_or(ObserverError("gone".to_owned()))?;
            Ok(Observation { total: Bytes::gib(16), available })
        }
    }

    fn cpu() -> Device {
        Device {
            id: DeviceId::cpu(),
            name: "test".to_owned(),
            kind: DeviceKind::Cpu,
            backend: "cpu".to_owned(),
            vendor: None,
            uuid: None,
            pci: None,
            driver: None,
            memory: Some(Bytes::gib(16)),
            cores: Some(2),
            instruction_sets: Vec::new(),
            compute_capability: None,
            usable: Usable::Yes,
        }
    }

    async fn start(gauge: &Gauge) -> MemoryHandle {
        let clock = Clock::fixed(Timestamp::UNIX_EPOCH);
        MemoryHandle::start(&[cpu()], Arc::new(gauge.clone()), clock).await
    }

    fn model() -> Owner {
        Owner::Model("demo".to_owned())
    }

    #[tokio::test]
    async fn a_dropped_reservation_is_gone_before_the_next_request_is_decided() {
        let memory = start(&Gauge::at(Bytes::gib(16))).await;
        let most = Bytes::gib(15);
        for _ in 0..100 {
            let held = memory.reserve(&DeviceId::cpu(), model(), most).await.unwrap();
            assert_eq!(memory.view().entries[0].promised, most);
            memory.reserve(&DeviceId::cpu(), model(), most).await.expect_err("taken");
            drop(held);
        }
        let mut watch = memory.watch();
        watch.wait_for(|view| view.allocations.is_empty()).await.unwrap();
        assert_eq!(memory.view().entries[0].promised, Bytes(0));
    }

    #[tokio::test]
    async fn a_caller_that_left_before_its_answer_holds_nothing() {
        let memory = start(&Gauge::at(Bytes::gib(16))).await;
        let (reply, answer) = oneshot::channel();
        drop(answer);
        let (device, owner, asked) = (DeviceId::cpu(), model(), Bytes::gib(1));
        memory.inbox.send(Command::Reserve { device, owner, asked, reply }).await.unwrap();
        memory.observe().await;
        memory.watch().wait_for(|view| view.allocations.is_empty()).await.unwrap();
    }

    #[tokio::test]
    async fn other_programs_count_and_settled_bytes_do_not_count_twice() {
        let gauge = Gauge::at(Bytes::gib(4));
        let memory = start(&gauge).await;
        let refused = memory.reserve(&DeviceId::cpu(), model(), Bytes::gib(8)).await;
        assert!(refused.unwrap_err().to_string().contains("4.0 GiB available"));

        let held = memory.reserve(&DeviceId::cpu(), model(), Bytes::gib(3)).await.unwrap();
        let allocation = memory.view().allocations[0].clone();
        assert_eq!(allocation.since, "1970-01-01T00:00:00.000Z");
        assert_eq!((allocation.id, allocation.bytes), (held.id(), held.bytes()));

        gauge.set(Some(Bytes::gib(1)));
        memory.settle(&held).await;
        let row = memory.view().entries[0].clone();
        assert_eq!(row.free, Bytes::mib(512), "1 GiB available, half of it margin");
        assert_eq!(row.observed, Some(Bytes::gib(15)));
        assert_eq!(row.entry(Bytes(7)).cache_bytes, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn the_system_is_looked_at_every_two_seconds() {
        let gauge = Gauge::at(Bytes::gib(16));
        let memory = start(&gauge).await;
        gauge.set(Some(Bytes::gib(1)));
        let mut watch = memory.watch();
        let pressed = watch.wait_for(|v| v.entries[0].pressure == Pressure::Critical).await;
        drop(pressed.unwrap());
        gauge.set(None);
        let silent = watch.wait_for(|v| v.entries[0].observed.is_none()).await;
        drop(silent.unwrap());
    }

    #[tokio::test]
    async fn the_real_machine_answers() {
        let observer = Arc::new(crate::memory::SystemObserver::default());
        let memory = MemoryHandle::start(&[cpu()], observer, Clock::system()).await;
        let row = memory.view().entries[0].clone();
        assert!(row.total > Bytes::mib(64));
        assert!(row.observed.unwrap() <= row.total);
    }
}
