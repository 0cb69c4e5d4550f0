//! What the system says about memory, behind a trait so that tests put in whatever machine they
//! like.

use crate::device::{Device, HostMemory, Nvidia};
use atelier_protocol::Bytes;

/// One device's memory at one moment, by anybody's use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observation {
    pub total: Bytes,
    /// What could be had now.
    pub available: Bytes,
}

/// A device that did not tell.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ObserverError(pub String);

/// Reads memory figures. Blocking; called off the async threads.
pub trait Observer: Send + Sync + 'static {
    fn observe(&self, device: &Device) -> Result<Observation, ObserverError>;
}

/// The machine that we run on: the kernel's figures for RAM, the driver's for cards.
#[derive(Clone, Debug, Default)]
pub struct SystemObserver(pub Nvidia);

impl Observer for SystemObserver {
    fn observe(&self, device: &Device) -> Result<Observation, ObserverError> {
        if device.id.is_cpu() {
            let memory = HostMemory::read().map_err(|error| ObserverError(error.to_string()))?;
            return Ok(Observation { total: memory.total, available: memory.available });
        }
        let pci = device
            .pci
            .as_deref()
            .ok_or_else(|| ObserverError(format!("{} has no bus id to ask for", device.id)))?;
        let memory = self.0.memory(pci).map_err(|error| ObserverError(error.to_string()))?;
        Ok(Observation { total: memory.total, available: memory.available })
    }
}
