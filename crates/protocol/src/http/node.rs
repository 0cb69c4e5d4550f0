//! `GET /v1/node` and the probes.

use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeInfo {
    pub name: String,
    pub version: String,
    /// Changes at every start.
    pub boot_id: String,
    pub pid: u32,
    /// RFC 3339, UTC.
    pub started_at: String,
    pub uptime_s: f64,
    pub worker_protocol: u32,
    pub jobs_queued: u64,
    pub jobs_running: u64,
    /// Seconds of idleness after which this node ends by itself; absent for `serve`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_exit_s: Option<u64>,
}

/// `GET /livez` and `GET /readyz`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Readiness {
    pub ok: bool,
    /// What is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
}

/// `DATA/node.json`, written by a serving node for commands on the same machine; removed at its end.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    pub address: String,
    pub pid: u32,
    pub boot_id: String,
}
