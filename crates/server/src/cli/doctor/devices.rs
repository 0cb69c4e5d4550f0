//! The devices that a node would use, and the driver behind them: there, absent, or failing.

use super::finding::Finding;
use crate::config::Config;
use atelier_engine::device::{Device, DeviceHandle, Nvidia, TorchBuild, Usable, system_sources};
use atelier_engine::files;
use std::path::Path;

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let own = config.python.is_none() && config.worker_command.is_none();
    let torch = if own { TorchBuild::Locked } else { TorchBuild::Foreign };
    let handle = DeviceHandle::start(system_sources(&Nvidia::default()), torch).await;
    let view = handle.view();
    let mut findings: Vec<_> = view.devices.iter().map(device).collect();
    let cards = view.devices.iter().filter(|device| !device.id.is_cpu()).count();
    findings.extend(driver(cards, &view.findings, &Kernel::under(Path::new("/"))));
    findings
}

fn device(device: &Device) -> Finding {
    let memory = device.memory.map(|bytes| format!(", {bytes}")).unwrap_or_default();
    let driver = device.driver.as_ref().map(|v| format!(", driver {v}")).unwrap_or_default();
    let seen = format!("{}: {}{memory}{driver}", device.id, device.name);
    match &device.usable {
        Usable::Yes => Finding::good("device", seen),
        Usable::No(why) => Finding::note(
            "device",
            format!("{seen}; not used because {why}"),
            "another driver, or a PyTorch for this card through `ATELIER_PYTHON`",
        ),
    }
}

/// What the kernel knows of NVIDIA cards, driver or not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Kernel {
    cards: usize,
    /// The driver's own word for itself, where its module is loaded.
    module: Option<String>,
}

impl Kernel {
    fn under(root: &Path) -> Self {
        let read = |path: &Path| files::read_to_string(path).unwrap_or_default();
        let buses = files::read_dir(&root.join("sys/bus/pci/devices")).unwrap_or_default();
        let is_card = |device: &&std::path::PathBuf| {
            // Display controllers; a card's audio function has another class.
            read(&device.join("vendor")).trim() == "0x10de"
                && read(&device.join("class")).starts_with("0x03")
        };
        let module = read(&root.join("proc/driver/nvidia/version"));
        Self {
            cards: buses.iter().filter(is_card).count(),
            module: module.lines().next().map(|line| {
                let words = line.trim_start_matches("NVRM version:").split_whitespace();
                words.collect::<Vec<_>>().join(" ")
            }),
        }
    }
}

/// Between the kernel's cards and those that the driver's library answers for. A machine without a card says nothing.
fn driver(answering: usize, complaints: &[String], kernel: &Kernel) -> Vec<Finding> {
    let what = "driver";
    if !complaints.is_empty() {
        let finding = |complaint: &String| {
            let lower = complaint.to_lowercase();
            let fix = if lower.contains("mismatch") {
                "the driver was updated while it was in use: restart the machine, or unload and load its kernel \
                 modules"
            } else if lower.contains("permission") {
                "let this user into the group that owns /dev/nvidia*, usually `video` or `render`"
            } else {
                "look at the driver with `nvidia-smi` and at the kernel's log; a restart often helps"
            };
            Finding::note(what, complaint.clone(), fix)
        };
        return complaints.iter().map(finding).collect();
    }
    let Kernel { cards, module } = kernel;
    match module {
        _ if answering > 0 || (*cards == 0 && module.is_none()) => Vec::new(),
        Some(module) => vec![Finding::note(
            what,
            format!("the kernel has the {module}, and its library libnvidia-ml.so.1 is not here"),
            "in a container: start it with the NVIDIA container toolkit (`--gpus all`); else install the driver's \
             libraries of the same version",
        )],
        None => vec![Finding::note(
            what,
            format!(
                "{cards} NVIDIA card(s) on the bus and no driver; pictures are made by the processor"
            ),
            "install the NVIDIA driver, version 580 or newer",
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn kernel(cards: usize, module: Option<&str>) -> Kernel {
        Kernel { cards, module: module.map(str::to_owned) }
    }

    #[test]
    fn a_machine_without_cards_or_with_working_ones_says_nothing() {
        assert_eq!(driver(0, &[], &kernel(0, None)), []);
        assert_eq!(driver(2, &[], &kernel(2, Some("driver 580"))), []);
    }

    #[test]
    fn absent_half_installed_and_failing_drivers_are_told_apart_with_their_fixes() {
        let complaint = |text: &str| vec![format!("NVIDIA cards: NVML: {text}")];
        for (complaints, kernel, word) in [
            (vec![], kernel(1, None), "install the NVIDIA driver"),
            (vec![], kernel(1, Some("driver 580")), "--gpus all"),
            (
                complaint("RM detected a driver/library version mismatch"),
                kernel(1, Some("driver 580")),
                "restart the machine",
            ),
            (complaint("no permission"), kernel(1, None), "video"),
            (complaint("the GPU has fallen off the bus"), kernel(1, None), "nvidia-smi"),
        ] {
            let found = driver(0, &complaints, &kernel);
            assert_eq!(found.len(), 1, "{kernel:?}");
            assert_eq!(found[0].verdict, Verdict::Note, "the processor still draws");
            assert!(found[0].fix.as_ref().unwrap().contains(word), "{found:?}");
        }
    }

    #[test]
    fn the_kernels_cards_are_counted_without_their_sound() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            files::create_dir_all(path.parent().unwrap()).unwrap();
            files::write_atomic(&path, text.as_bytes()).unwrap();
        };
        for (bus, vendor, class) in [
            ("0000:01:00.0", "0x10de\n", "0x030000\n"),
            ("0000:01:00.1", "0x10de\n", "0x040300\n"),
            ("0000:02:00.0", "0x1002\n", "0x030000\n"),
            ("0000:03:00.0", "0x10de\n", "0x030200\n"),
        ] {
            write(&format!("sys/bus/pci/devices/{bus}/vendor"), vendor);
            write(&format!("sys/bus/pci/devices/{bus}/class"), class);
        }
        write(
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC\n",
        );
        let module = "NVIDIA UNIX Open Kernel Module for x86_64 580.65.06 Release Build";
        assert_eq!(Kernel::under(root.path()), kernel(2, Some(module)));
    }
}
