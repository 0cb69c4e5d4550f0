//! Decides which reservation fits where. Holds no clock, lock or channel, so every rule here is a
//! plain test.

use super::observer::Observation;
use super::{Allocation, AllocationId, MemoryError, MemoryRow, Owner, Pressure};
use atelier_protocol::{Bytes, DeviceId};
use std::collections::BTreeMap;
use std::fmt;

/// Kept back on every device: allocators round up, and a machine without a spare page is no
/// machine. A sixteenth of devices smaller than 8 GiB.
const MARGIN: Bytes = Bytes::mib(512);

/// What is promised to whom. A value.
#[derive(Debug)]
pub(super) struct Ledger {
    devices: Vec<Account>,
    allocations: BTreeMap<AllocationId, Allocation>,
    next: u64,
}

#[derive(Debug)]
struct Account {
    device: DeviceId,
    total: Bytes,
    // Bytes promised, not bytes measured: two loads starting together must not both see the same
    // free memory.
    promised: Bytes,
    /// Part of `promised` that no report of the system can contain yet.
    unsettled: Bytes,
    available: Option<Bytes>,
}

/// How the free bytes of a device come about; prints itself as a sum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arithmetic {
    pub free: Bytes,
    pub margin: Bytes,
    pub limit: Limit,
}

/// Which of the two figures was the smaller one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Our own promises.
    Promised { total: Bytes, promised: Bytes },
    /// Other programs on the machine.
    Available { available: Bytes, unsettled: Bytes },
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { free, margin, limit } = self;
        match limit {
            Limit::Promised { total, promised } => {
                write!(f, "{free} free = {total} total − {promised} promised − {margin} margin")
            }
            Limit::Available { available, unsettled } => write!(
                f,
                "{free} free = {available} available as the system reports − {unsettled} promised and not yet in use \
                 − {margin} margin"
            ),
        }
    }
}

impl Account {
    fn margin(&self) -> Bytes {
        MARGIN.min(Bytes(self.total.0 / 16))
    }

    fn arithmetic(&self) -> Arithmetic {
        let margin = self.margin();
        let unpromised = self.total.saturating_sub(self.promised);
        match self.available {
            Some(available) if available.saturating_sub(self.unsettled) < unpromised => {
                Arithmetic {
                    free: available.saturating_sub(self.unsettled).saturating_sub(margin),
                    margin,
                    limit: Limit::Available { available, unsettled: self.unsettled },
                }
            }
            Some(_) | None => Arithmetic {
                free: unpromised.saturating_sub(margin),
                margin,
                limit: Limit::Promised { total: self.total, promised: self.promised },
            },
        }
    }
}

impl Ledger {
    /// An account a device; a total that nobody knows is zero until it is observed.
    pub(super) fn new(devices: impl IntoIterator<Item = (DeviceId, Option<Bytes>)>) -> Self {
        let account = |(device, total): (DeviceId, Option<Bytes>)| Account {
            device,
            total: total.unwrap_or_default(),
            promised: Bytes(0),
            unsettled: Bytes(0),
            available: None,
        };
        Self {
            devices: devices.into_iter().map(account).collect(),
            allocations: BTreeMap::new(),
            next: 1,
        }
    }

    pub(super) fn reserve(
        &mut self,
        device: &DeviceId,
        owner: Owner,
        asked: Bytes,
        since: String,
    ) -> Result<AllocationId, MemoryError> {
        let Some(account) = self.devices.iter_mut().find(|account| account.device == *device)
        else {
            return Err(MemoryError::UnknownDevice { device: device.clone() });
        };
        let arithmetic = account.arithmetic();
        if arithmetic.free < asked {
            return Err(MemoryError::Insufficient { device: device.clone(), asked, arithmetic });
        }
        account.promised = account.promised.saturating_add(asked);
        account.unsettled = account.unsettled.saturating_add(asked);
        let id = AllocationId(self.next);
        self.next += 1;
        let device = device.clone();
        let allocation = Allocation { id, device, owner, bytes: asked, settled: false, since };
        self.allocations.insert(id, allocation);
        Ok(id)
    }

    /// The bytes are in use and a report taken since then is about to be entered. Unknown ids were
    /// released meanwhile.
    pub(super) fn settle(&mut self, id: AllocationId) {
        if let Some(allocation) = self.allocations.get_mut(&id)
            && !allocation.settled
        {
            allocation.settled = true;
            if let Some(account) = self.devices.iter_mut().find(|a| a.device == allocation.device) {
                account.unsettled = account.unsettled.saturating_sub(allocation.bytes);
            }
        }
    }

    /// Takes a promise back. Twice is once.
    pub(super) fn release(&mut self, id: AllocationId) {
        let Some(allocation) = self.allocations.remove(&id) else { return };
        if let Some(account) = self.devices.iter_mut().find(|a| a.device == allocation.device) {
            account.promised = account.promised.saturating_sub(allocation.bytes);
            if !allocation.settled {
                account.unsettled = account.unsettled.saturating_sub(allocation.bytes);
            }
        }
    }

    /// Enters what the system reports; `None` when it did not answer, so that an old figure is not
    /// taken for a new one.
    pub(super) fn observe(&mut self, device: &DeviceId, seen: Option<Observation>) {
        if let Some(account) = self.devices.iter_mut().find(|account| account.device == *device) {
            account.available = seen.map(|seen| seen.available);
            if let Some(seen) = seen {
                account.total = seen.total;
            }
        }
    }

    pub(super) fn rows(&self) -> Vec<MemoryRow> {
        self.devices
            .iter()
            .map(|account| {
                let observed =
                    account.available.map(|available| account.total.saturating_sub(available));
                MemoryRow {
                    device: account.device.clone(),
                    total: account.total,
                    promised: account.promised,
                    observed,
                    free: account.arithmetic().free,
                    pressure: Pressure::of(observed.unwrap_or(account.promised), account.total),
                }
            })
            .collect()
    }

    pub(super) fn allocations(&self) -> Vec<Allocation> {
        self.allocations.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ledger(total: Bytes) -> Ledger {
        Ledger::new([(DeviceId::cpu(), Some(total))])
    }

    fn reserve(ledger: &mut Ledger, bytes: Bytes) -> Result<AllocationId, MemoryError> {
        ledger.reserve(&DeviceId::cpu(), Owner::Model("m".to_owned()), bytes, String::new())
    }

    #[test]
    fn a_refusal_shows_the_arithmetic_of_the_smaller_figure() {
        let mut ledger = ledger(Bytes::gib(24));
        reserve(&mut ledger, Bytes::gib(22)).unwrap();
        let full = reserve(&mut ledger, Bytes::gib(2)).expect_err("1.5 GiB are left");
        assert_eq!(
            full.to_string(),
            "needs 2.0 GiB on cpu; 1.5 GiB free = 24.0 GiB total − 22.0 GiB promised − 512.0 MiB margin"
        );
        let seen = Observation { total: Bytes::gib(24), available: Bytes::gib(23) };
        ledger.observe(&DeviceId::cpu(), Some(seen));
        let crowded = reserve(&mut ledger, Bytes::gib(2)).expect_err("others use 1 GiB");
        assert_eq!(
            crowded.to_string(),
            "needs 2.0 GiB on cpu; 512.0 MiB free = 23.0 GiB available as the system reports − 22.0 GiB promised and \
             not yet in use − 512.0 MiB margin"
        );
        assert_eq!(crowded.code(), atelier_protocol::ErrorCode::MemoryInsufficient);
    }

    #[test]
    fn settled_bytes_are_not_counted_twice() {
        let mut ledger = ledger(Bytes::gib(80));
        let weights = reserve(&mut ledger, Bytes::gib(50)).unwrap();
        let seen = Observation { total: Bytes::gib(80), available: Bytes::gib(30) };
        ledger.observe(&DeviceId::cpu(), Some(seen));
        assert_eq!(ledger.rows()[0].free, Bytes(0), "the report may not contain the weights yet");
        ledger.settle(weights);
        assert_eq!(ledger.rows()[0].free, Bytes::mib(30 * 1024 - 512));
        ledger.release(weights);
        ledger.release(weights);
        ledger.settle(weights);
        assert_eq!(ledger.rows()[0].promised, Bytes(0));
    }

    #[test]
    fn a_device_that_stops_answering_is_judged_by_promises_alone() {
        let mut ledger = ledger(Bytes::gib(16));
        let seen = Observation { total: Bytes::gib(16), available: Bytes::gib(1) };
        ledger.observe(&DeviceId::cpu(), Some(seen));
        assert_eq!(ledger.rows()[0].pressure, Pressure::Critical);
        ledger.observe(&DeviceId::cpu(), None);
        let row = &ledger.rows()[0];
        assert_eq!((row.observed, row.pressure), (None, Pressure::Low));
        assert_eq!(row.free, Bytes::mib(15 * 1024 + 512));
    }

    #[test]
    fn nothing_fits_on_a_device_of_unknown_size_or_name() {
        let mut ledger = Ledger::new([(DeviceId::cpu(), None)]);
        reserve(&mut ledger, Bytes(1)).expect_err("the total is not known");
        let other = DeviceId("cuda:0".to_owned());
        let unknown =
            ledger.reserve(&other, Owner::Worker("w".to_owned()), Bytes(1), String::new());
        assert_eq!(unknown, Err(MemoryError::UnknownDevice { device: other }));
    }

    #[test]
    fn small_devices_keep_a_smaller_margin() {
        assert_eq!(ledger(Bytes::gib(1)).rows()[0].free, Bytes::mib(960));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(u64),
        Release(usize),
        Settle(usize),
        Observe(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..600_u64).prop_map(Step::Reserve),
            2 => any::<usize>().prop_map(Step::Release),
            1 => any::<usize>().prop_map(Step::Settle),
            1 => (0..1700_u64).prop_map(Step::Observe),
        ]
    }

    proptest! {
        /// The model: a list of (id, bytes, settled) and the last report. 1600 bytes in all, a
        /// margin of 100.
        #[test]
        fn the_ledger_never_promises_more_than_there_is_and_returns_to_zero(
            steps in prop::collection::vec(step(), 0..200)
        ) {
            let mut ledger = ledger(Bytes(1600));
            let mut held: Vec<(AllocationId, u64, bool)> = Vec::new();
            let mut available = None;
            for step in steps {
                let promised: u64 = held.iter().map(|h| h.1).sum();
                let waiting: u64 = held.iter().filter(|h| !h.2).map(|h| h.1).sum();
                let free = (1600 - promised)
                    .min(available.map_or(u64::MAX, |a: u64| a.saturating_sub(waiting)))
                    .saturating_sub(100);
                prop_assert_eq!(ledger.rows()[0].free, Bytes(free));
                prop_assert_eq!(ledger.rows()[0].promised, Bytes(promised));
                match step {
                    Step::Reserve(bytes) => match reserve(&mut ledger, Bytes(bytes)) {
                        Ok(id) => {
                            prop_assert!(bytes <= free);
                            held.push((id, bytes, false));
                        }
                        Err(_) => prop_assert!(bytes > free),
                    },
                    Step::Release(at) if !held.is_empty() => {
                        ledger.release(held.remove(at % held.len()).0);
                    }
                    Step::Settle(at) if !held.is_empty() => {
                        let at = at % held.len();
                        held[at].2 = true;
                        ledger.settle(held[at].0);
                    }
                    Step::Release(_) | Step::Settle(_) => {}
                    Step::Observe(bytes) => {
                        available = Some(bytes);
                        let seen = Observation { total: Bytes(1600), available: Bytes(bytes) };
                        ledger.observe(&DeviceId::cpu(), Some(seen));
                    }
                }
            }
            for (id, ..) in held {
                ledger.release(id);
            }
            prop_assert_eq!(ledger.rows()[0].promised, Bytes(0));
            prop_assert!(ledger.allocations().is_empty());
        }
    }
}
