//! `GET /v1/memory`.

use serde::{Deserialize, Serialize};

/// Memory of one device; `cpu` is the machine's RAM, within the limits of its control group.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemoryEntry {
    pub device: String,
    pub total_bytes: u64,
    /// Promised to jobs and models by this node.
    pub promised_bytes: u64,
    /// In use by anybody, as the system reports it.
    pub observed_bytes: u64,
    /// What may still be promised.
    pub free_bytes: u64,
    /// Held by this node's caches.
    pub cache_bytes: u64,
    /// `low`, `warn`, `high`, `critical`, `emergency`.
    pub pressure: String,
}
