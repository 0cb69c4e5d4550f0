//! `GET /v1/devices`.

use crate::worker::Numerics;
use serde::{Deserialize, Serialize};

/// One device. A value that nobody measured is absent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceEntry {
    pub id: String,
    pub name: String,
    /// `cpu` or `gpu`.
    pub kind: String,
    /// `cpu`, `cuda`.
    pub backend: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// `ready`, `busy`, `starting`, `quarantined`, `unsupported`, `failed`.
    pub state: String,
    pub capabilities: DeviceCapabilities,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<DeviceWorker>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceCapabilities {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Instruction sets that change how numbers are computed, such as `avx2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instruction_sets: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// How numbers are computed here, once chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numerics: Option<Numerics>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceWorker {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `absent`, `starting`, `ready`, `draining`, `lost`, `failed`.
    pub state: String,
    /// RFC 3339, UTC.
    pub since: String,
}
