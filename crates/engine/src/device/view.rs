//! What others may read: devices as plain values, and the published snapshot of them.

use atelier_protocol::http::{DeviceCapabilities, DeviceEntry, DeviceWorker};
use atelier_protocol::worker::Numerics;
use atelier_protocol::{Bytes, DeviceId};
use std::sync::Arc;

/// One device. What nobody measured is `None`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    pub id: DeviceId,
    pub name: String,
    pub kind: DeviceKind,
    /// The word before the colon of a card's id: `cpu`, `cuda`.
    pub backend: String,
    pub vendor: Option<String>,
    pub uuid: Option<String>,
    /// Bus id in the form that Linux uses, `0000:65:00.0`.
    pub pci: Option<String>,
    /// Driver version in full, such as `580.65.06`.
    pub driver: Option<String>,
    /// All of it, within the limits of our control group for the processor.
    pub memory: Option<Bytes>,
    /// Threads that may run at once; of a processor only.
    pub cores: Option<u32>,
    /// Those that change how numbers are computed.
    pub instruction_sets: Vec<String>,
    /// Of an NVIDIA card: major, minor.
    pub compute_capability: Option<(u32, u32)>,
    pub usable: Usable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    Cpu,
    Gpu,
}

impl DeviceKind {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }
}

/// Whether work may be placed on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Usable {
    Yes,
    /// Why not, as a clause that fits after "because".
    No(String),
}

/// Which PyTorch the workers will run: it decides which cards count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TorchBuild {
    /// The one of our lock file, whose needs are known before it is installed.
    Locked,
    /// The user's own interpreter; only its worker can say which cards it supports.
    Foreign,
}

/// The latest published state.
#[derive(Clone, Debug)]
pub struct DeviceView {
    /// Grows with every discovery.
    pub generation: u64,
    /// The processor first, then cards by bus id.
    pub devices: Arc<[Device]>,
    /// What went wrong while looking, one sentence each.
    pub findings: Arc<[String]>,
}

impl Device {
    /// This device as clients see it. What it is doing (`ready`, `busy`, `starting`, `failed`) is
    /// known above; a device that cannot be used is `unsupported` whatever is said.
    #[must_use]
    pub fn entry(
        &self,
        state: &str,
        numerics: Option<Numerics>,
        worker: Option<DeviceWorker>,
    ) -> DeviceEntry {
        let state = match &self.usable {
            Usable::Yes => state,
            Usable::No(_) => "unsupported",
        };
        DeviceEntry {
            id: self.id.to_string(),
            name: self.name.clone(),
            kind: self.kind.word().to_owned(),
            backend: self.backend.clone(),
            vendor: self.vendor.clone(),
            uuid: self.uuid.clone(),
            pci: self.pci.clone(),
            driver: self.driver.clone(),
            memory_bytes: self.memory.map(|bytes| bytes.0),
            state: state.to_owned(),
            capabilities: DeviceCapabilities {
                cores: self.cores,
                instruction_sets: self.instruction_sets.clone(),
                compute_capability: self
                    .compute_capability
                    .map(|(major, minor)| format!("{major}.{minor}")),
                numerics,
            },
            worker,
        }
    }
}
