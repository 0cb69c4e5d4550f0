//! NVIDIA cards through NVML, the driver's own library, loaded at run time. A machine without it is
//! the normal case and says nothing; a library that is there and fails is a finding.

use super::inventory::{number_cards, short_bus_id};
use super::{Device, DeviceKind, Found, Source, SourceError, Usable};
use atelier_protocol::{Bytes, DeviceId};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// One connection to NVML for the whole process, opened when first used. Cheap to clone.
#[derive(Clone, Default)]
pub struct Nvidia(Arc<OnceLock<Nvml>>);

/// Memory of one card at one moment, by anybody's use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CardMemory {
    pub total: Bytes,
    pub available: Bytes,
}

impl Nvidia {
    /// `None` where the machine has no NVIDIA driver. A failure is tried again at the next call,
    /// since a driver may come up after us.
    fn library(&self) -> Result<Option<&Nvml>, NvmlError> {
        if let Some(nvml) = self.0.get() {
            return Ok(Some(nvml));
        }
        match Nvml::init() {
            Ok(nvml) => Ok(Some(self.0.get_or_init(|| nvml))),
            Err(NvmlError::LibloadingError(error)) if is_absent(&error.to_string()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Memory of the card at this bus id.
    pub fn memory(&self, pci: &str) -> Result<CardMemory, SourceError> {
        let explain = |error: NvmlError| SourceError(format!("card at {pci}: {error}"));
        let nvml = self
            .library()
            .map_err(explain)?
            .ok_or_else(|| SourceError("the NVIDIA driver's library is gone".to_owned()))?;
        let memory =
            nvml.device_by_pci_bus_id(pci).and_then(|card| card.memory_info()).map_err(explain)?;
        Ok(CardMemory { total: Bytes(memory.total), available: Bytes(memory.free) })
    }
}

impl fmt::Debug for Nvidia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.get().is_some() { "Nvidia(open)" } else { "Nvidia(closed)" })
    }
}

/// The loader's words for a library that does not exist, as against one that exists and lacks
/// something itself.
fn is_absent(message: &str) -> bool {
    message.starts_with("libnvidia-ml") && message.contains("No such file")
}

/// Finds cards.
#[derive(Clone, Debug)]
pub struct NvidiaSource(pub Nvidia);

impl Source for NvidiaSource {
    fn name(&self) -> &'static str {
        "NVIDIA cards"
    }

    fn discover(&self) -> Result<Found, SourceError> {
        let explain = |error: NvmlError| SourceError(format!("NVML: {error}"));
        let Some(nvml) = self.0.library().map_err(explain)? else {
            return Ok(Found::default());
        };
        let driver = nvml.sys_driver_version().ok();
        let mut found = Found::default();
        for index in 0..nvml.device_count().map_err(explain)? {
            match nvml.device_by_index(index).and_then(|card| describe(&card, driver.clone())) {
                Ok(device) => found.devices.push(device),
                // A card that fell off its bus must not hide the others.
                Err(error) => found.findings.push(format!("NVIDIA card {index}: {error}")),
            }
        }
        number_cards(&mut found.devices);
        Ok(found)
    }
}

fn describe(card: &nvml_wrapper::Device<'_>, driver: Option<String>) -> Result<Device, NvmlError> {
    let pci = card.pci_info()?;
    Ok(Device {
        id: DeviceId(String::new()), // given by `number_cards`
        name: card.name()?,
        kind: DeviceKind::Gpu,
        backend: "cuda".to_owned(),
        vendor: Some("NVIDIA".to_owned()),
        // Some cards do not tell one of these; they work all the same.
        uuid: card.uuid().ok(),
        pci: Some(short_bus_id(&pci.bus_id)),
        driver,
        memory: card.memory_info().ok().map(|memory| Bytes(memory.total)),
        cores: None,
        instruction_sets: Vec::new(),
        compute_capability: card
            .cuda_compute_capability()
            .ok()
            .and_then(|c| Some((c.major.try_into().ok()?, c.minor.try_into().ok()?))),
        usable: Usable::Yes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_silent_and_a_broken_one_is_not() {
        let cases = [
            ("libnvidia-ml.so.1: cannot open shared object file: No such file or directory", true),
            ("libnvidia-ml.so.1: file too short", false),
            ("libgone.so: cannot open shared object file: No such file or directory", false),
        ];
        for (message, absent) in cases {
            assert_eq!(is_absent(message), absent, "{message}");
        }
    }

    #[test]
    fn what_this_machine_answers_is_consistent() {
        // With a driver there are numbered cards with bus ids whose memory can be asked for;
        // without one, nothing, whether or not the library is there.
        let nvidia = Nvidia::default();
        let discovered = NvidiaSource(nvidia.clone()).discover();
        if !std::path::Path::new("/proc/driver/nvidia").exists() {
            let found = discovered.clone().unwrap_or_default();
            assert_eq!(found.devices, []);
        }
        if let Ok(found) = discovered {
            for (index, device) in found.devices.iter().enumerate() {
                assert_eq!(device.id.as_str(), format!("cuda:{index}"));
                let pci = device.pci.as_deref().expect("a bus id");
                if let (Some(total), Ok(memory)) = (device.memory, nvidia.memory(pci)) {
                    assert_eq!(memory.total, total);
                    assert!(memory.available <= memory.total);
                }
            }
        }
    }
}
