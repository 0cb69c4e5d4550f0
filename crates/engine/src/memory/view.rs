//! What others may read: the published snapshot of the ledger.

use atelier_protocol::http::MemoryEntry;
use atelier_protocol::{Bytes, DeviceId, JobId};
use std::fmt;
use std::sync::Arc;

/// Names a reservation within one run of the node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AllocationId(pub u64);

/// Who a promise was made to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    Job(JobId),
    /// A model's weights, by its id.
    Model(String),
    /// What a worker needs to exist, by the name that its supervisor gives it.
    Worker(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => write!(f, "job {id}"),
            Self::Model(id) => write!(f, "model {id}"),
            Self::Worker(name) => write!(f, "worker {name}"),
        }
    }
}

/// One promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allocation {
    pub id: AllocationId,
    pub device: DeviceId,
    pub owner: Owner,
    pub bytes: Bytes,
    /// Whether the owner has taken the bytes.
    pub settled: bool,
    /// RFC 3339, UTC.
    pub since: String,
}

/// One device's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryRow {
    pub device: DeviceId,
    pub total: Bytes,
    pub promised: Bytes,
    /// In use by anybody, as the system reports it; `None` while it has not answered.
    pub observed: Option<Bytes>,
    pub free: Bytes,
    pub pressure: Pressure,
}

/// How full a device is: each level starts where the one before it ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pressure {
    /// Below 80 %.
    Low,
    /// From 80 %.
    Warn,
    /// From 85 %.
    High,
    /// From 90 %.
    Critical,
    /// From 95 %.
    Emergency,
}

impl Pressure {
    /// The level of `used` out of `total`. Nothing of nothing is an emergency: nothing can be
    /// placed there.
    #[must_use]
    pub fn of(used: Bytes, total: Bytes) -> Self {
        let percent = (u128::from(used.0) * 100).checked_div(u128::from(total.0)).unwrap_or(100);
        match percent {
            0..80 => Self::Low,
            80..85 => Self::Warn,
            85..90 => Self::High,
            90..95 => Self::Critical,
            95.. => Self::Emergency,
        }
    }
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Warn => "warn",
            Self::High => "high",
            Self::Critical => "critical",
            Self::Emergency => "emergency",
        }
    }
}

/// The latest published state.
#[derive(Clone, Debug)]
pub struct MemoryView {
    /// Grows with every change and every observation.
    pub generation: u64,
    /// In the order of the devices.
    pub entries: Arc<[MemoryRow]>,
    /// Oldest first.
    pub allocations: Arc<[Allocation]>,
}

impl MemoryRow {
    /// This row as clients see it. `cache` is what the caches of this node hold on the device,
    /// which they know themselves.
    #[must_use]
    pub fn entry(&self, cache: Bytes) -> MemoryEntry {
        MemoryEntry {
            device: self.device.to_string(),
            total_bytes: self.total.0,
            promised_bytes: self.promised.0,
            // A device that reports nothing is at least as full as we know it to be.
            observed_bytes: self.observed.unwrap_or(self.promised).0,
            free_bytes: self.free.0,
            cache_bytes: cache.0,
            pressure: self.pressure.word().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_levels_begin_at_their_percentage() {
        for (used, level) in [
            (0, Pressure::Low),
            (799, Pressure::Low),
            (800, Pressure::Warn),
            (849, Pressure::Warn),
            (850, Pressure::High),
            (900, Pressure::Critical),
            (949, Pressure::Critical),
            (950, Pressure::Emergency),
            (2000, Pressure::Emergency),
        ] {
            assert_eq!(Pressure::of(Bytes(used), Bytes(1000)), level, "{used} of 1000");
        }
        assert_eq!(Pressure::of(Bytes(0), Bytes(0)), Pressure::Emergency);
        assert_eq!(Pressure::of(Bytes(u64::MAX), Bytes(u64::MAX)), Pressure::Emergency);
    }
}
