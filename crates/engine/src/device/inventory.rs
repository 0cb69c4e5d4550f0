//! Turns what the sources found into the one list of devices. Holds no channel and reads nothing,
//! so every rule here is a plain test.

use super::{Device, DeviceKind, Found, SourceError, TorchBuild, Usable};
use atelier_protocol::DeviceId;

/// Lowest compute capability that the locked PyTorch has kernels for.
const LOCKED_TORCH_CAPABILITY: (u32, u32) = (7, 5);
/// Lowest driver branch that can run the CUDA libraries of the locked PyTorch.
const LOCKED_TORCH_DRIVER: u32 = 580;

/// Whether the PyTorch of our lock file can use a card. Facts that are not known speak for the
/// card: the worker's own probe has the last word.
#[must_use]
pub fn supported_by_locked_torch(capability: Option<(u32, u32)>, driver: Option<&str>) -> Usable {
    if let Some((major, minor)) = capability
        && (major, minor) < LOCKED_TORCH_CAPABILITY
    {
        let (need_major, need_minor) = LOCKED_TORCH_CAPABILITY;
        return Usable::No(format!(
            "its compute capability is {major}.{minor} and Atelier's PyTorch needs {need_major}.{need_minor} or more"
        ));
    }
    if let Some(driver) = driver
        && let Some(branch) = driver.split('.').next().and_then(|n| n.parse::<u32>().ok())
        && branch < LOCKED_TORCH_DRIVER
    {
        return Usable::No(format!(
            "the NVIDIA driver is {driver} and Atelier's PyTorch needs {LOCKED_TORCH_DRIVER} or newer"
        ));
    }
    Usable::Yes
}

/// Names cards `backend:0`, `backend:1`, … by bus id, which is the order of
/// `CUDA_DEVICE_ORDER=PCI_BUS_ID`. Cards without a bus id come last, in the order in which they
/// were found.
pub(super) fn number_cards(cards: &mut [Device]) {
    cards.sort_by(|a, b| match (&a.pci, &b.pci) {
        (Some(a), Some(b)) => bus_order(a).cmp(&bus_order(b)),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => std::cmp::Ordering::Equal,
    });
    for (index, card) in cards.iter_mut().enumerate() {
        card.id = DeviceId(format!("{}:{index}", card.backend));
    }
}

/// A bus id as NVML writes it (`00000000:65:00.0`) in the shorter form of Linux (`0000:65:00.0`).
pub(super) fn short_bus_id(long: &str) -> String {
    let lower = long.to_ascii_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) if domain.len() == 8 && domain.starts_with("0000") => {
            format!("{}:{rest}", &domain[4..])
        }
        _ => lower,
    }
}

/// Bus ids compare as numbers, since the domain may be written with four or eight digits.
fn bus_order(pci: &str) -> Vec<u64> {
    pci.split([':', '.']).map(|part| u64::from_str_radix(part, 16).unwrap_or(u64::MAX)).collect()
}

/// All devices and all findings, in the order of publication.
pub(super) fn take_stock(
    found: Vec<(&'static str, Result<Found, SourceError>)>,
    torch: TorchBuild,
) -> (Vec<Device>, Vec<String>) {
    let mut devices: Vec<Device> = Vec::new();
    let mut findings = Vec::new();
    for (source, outcome) in found {
        match outcome {
            Ok(found) => {
                findings.extend(found.findings);
                for device in found.devices {
                    if devices.iter().any(|known| known.id == device.id) {
                        findings
                            .push(format!("{source} found a second device called {}", device.id));
                    } else {
                        devices.push(judged(device, torch));
                    }
                }
            }
            Err(error) => findings.push(format!("{source}: {error}")),
        }
    }
    devices.sort_by_key(|device| device.kind != DeviceKind::Cpu);
    (devices, findings)
}

fn judged(mut device: Device, torch: TorchBuild) -> Device {
    match (torch, device.kind, &device.usable) {
        (TorchBuild::Locked, DeviceKind::Gpu, Usable::Yes) => {
            device.usable =
                supported_by_locked_torch(device.compute_capability, device.driver.as_deref());
        }
        (TorchBuild::Locked, DeviceKind::Gpu, Usable::No(_))
        | (TorchBuild::Locked, DeviceKind::Cpu, _)
        | (TorchBuild::Foreign, _, _) => {}
    }
    device
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::device) fn card(name: &str, pci: Option<&str>) -> Device {
        Device {
            id: DeviceId("unnumbered".to_owned()),
            name: name.to_owned(),
            kind: DeviceKind::Gpu,
            backend: "cuda".to_owned(),
            vendor: Some("NVIDIA".to_owned()),
            uuid: None,
            pci: pci.map(short_bus_id),
            driver: Some("580.65.06".to_owned()),
            memory: None,
            cores: None,
            instruction_sets: Vec::new(),
            compute_capability: Some((9, 0)),
            usable: Usable::Yes,
        }
    }

    #[test]
    fn the_locked_torch_wants_a_capability_and_a_driver_branch() {
        for (capability, driver, why) in [
            (Some((7, 5)), Some("580.65.06"), None),
            (Some((9, 0)), Some("600"), None),
            (Some((12, 1)), None, None),
            (None, None, None),
            (None, Some("not a number"), None),
            (Some((7, 4)), Some("580.1"), Some("compute capability is 7.4")),
            (Some((6, 1)), None, Some("needs 7.5 or more")),
            (Some((8, 6)), Some("535.183.01"), Some("driver is 535.183.01")),
        ] {
            let verdict = supported_by_locked_torch(capability, driver);
            match (why, &verdict) {
                (None, Usable::Yes) => {}
                (Some(why), Usable::No(reason)) => assert!(reason.contains(why), "{reason}"),
                (None | Some(_), _) => panic!("{capability:?} {driver:?}: {verdict:?}"),
            }
        }
    }

    #[test]
    fn cards_are_numbered_by_bus_id_as_numbers() {
        let mut cards = [
            card("no bus", None),
            card("high", Some("00000000:C1:00.0")),
            card("other domain", Some("00000001:01:00.0")),
            card("low", Some("00000000:0A:00.0")),
        ];
        number_cards(&mut cards);
        let order: Vec<(&str, &str)> =
            cards.iter().map(|c| (c.id.as_str(), c.name.as_str())).collect();
        let expected = [
            ("cuda:0", "low"),
            ("cuda:1", "high"),
            ("cuda:2", "other domain"),
            ("cuda:3", "no bus"),
        ];
        assert_eq!(order, expected);
        assert_eq!(cards[0].pci.as_deref(), Some("0000:0a:00.0"));
    }

    #[test]
    fn a_failing_source_becomes_a_finding_and_the_rest_stays() {
        let mut one = [card("old", Some("0000:01:00.0"))];
        number_cards(&mut one);
        one[0].compute_capability = Some((6, 1));
        let found = || {
            vec![
                ("broken", Err(SourceError("no answer".to_owned()))),
                ("cards", Ok(Found { devices: one.to_vec(), findings: vec!["x".to_owned()] })),
                ("again", Ok(Found { devices: one.to_vec(), findings: Vec::new() })),
            ]
        };
        let (devices, findings) = take_stock(found(), TorchBuild::Locked);
        assert_eq!(devices.len(), 1);
        assert!(matches!(devices[0].usable, Usable::No(_)));
        let expected = ["broken: no answer", "x", "again found a second device called cuda:0"];
        assert_eq!(findings, expected);
        // With the user's own PyTorch our table does not apply.
        assert_eq!(take_stock(found(), TorchBuild::Foreign).0[0].usable, Usable::Yes);
    }
}
