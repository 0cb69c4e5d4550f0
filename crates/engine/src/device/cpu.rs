//! The processor, from `/proc/cpuinfo`. There is always one.

use super::{Device, DeviceKind, Found, HostMemory, Source, SourceError, Usable};
use crate::files;
use atelier_protocol::DeviceId;
use std::path::Path;

/// Instruction sets that decide which kernels PyTorch picks, and thereby pixels.
const INSTRUCTION_SETS: [&str; 8] =
    ["sse4_2", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_bf16", "amx_bf16"];

/// Looks at the machine that we run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuSource;

impl Source for CpuSource {
    fn name(&self) -> &'static str {
        "processor"
    }

    fn discover(&self) -> Result<Found, SourceError> {
        let mut findings = Vec::new();
        let text = files::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_else(|error| {
            findings.push(error.to_string());
            String::new()
        });
        let memory = match HostMemory::read() {
            Ok(memory) => Some(memory.total),
            Err(error) => {
                findings.push(error.to_string());
                None
            }
        };
        // Counts what our affinity mask and the quota of our control group (both versions) leave
        // us.
        let cores = std::thread::available_parallelism().ok().and_then(|n| n.get().try_into().ok());
        let CpuInfo { name, vendor, instruction_sets } = parse(&text);
        let device = Device {
            id: DeviceId::cpu(),
            name: name.unwrap_or_else(|| "processor".to_owned()),
            kind: DeviceKind::Cpu,
            backend: "cpu".to_owned(),
            vendor,
            uuid: None,
            pci: None,
            driver: None,
            memory,
            cores,
            instruction_sets,
            compute_capability: None,
            usable: Usable::Yes,
        };
        Ok(Found { devices: vec![device], findings })
    }
}

#[derive(PartialEq, Eq, Debug, Default)]
struct CpuInfo {
    name: Option<String>,
    vendor: Option<String>,
    instruction_sets: Vec<String>,
}

fn parse(cpuinfo: &str) -> CpuInfo {
    // The first processor speaks for all: kernels are chosen once a process.
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.split_whitespace().collect::<Vec<_>>().join(" "))
        })
    };
    let flags = field("flags").unwrap_or_default();
    CpuInfo {
        name: field("model name").filter(|name| !name.is_empty()),
        vendor: field("vendor_id").map(|vendor| match vendor.as_str() {
            "GenuineIntel" => "Intel".to_owned(),
            "AuthenticAMD" => "AMD".to_owned(),
            _ => vendor,
        }),
        instruction_sets: INSTRUCTION_SETS
            .into_iter()
            .filter(|set| flags.split(' ').any(|flag| flag == *set))
            .map(str::to_owned)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processor_speaks_for_all() {
        let text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC  9554\n\
                    flags\t\t: fpu sse4_2 avx avx2 fma avx512f avx512_bf16 avx512vl\n\n\
                    processor\t: 1\nvendor_id\t: Other\nmodel name\t: Other\nflags\t: amx_bf16\n";
        let info = parse(text);
        assert_eq!(info.name.as_deref(), Some("AMD EPYC 9554"));
        assert_eq!(info.vendor.as_deref(), Some("AMD"));
        let expected = ["sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16"];
        assert_eq!(info.instruction_sets, expected);
    }

    #[test]
    fn what_is_not_written_is_absent() {
        assert_eq!(parse("garbage\n:\n"), CpuInfo::default());
    }

    #[test]
    fn this_machine_has_a_processor_with_cores_and_memory() {
        let found = CpuSource.discover().unwrap();
        assert_eq!(found.findings, Vec::<String>::new());
        let device = &found.devices[0];
        assert!(device.id.is_cpu());
        assert!(device.cores.unwrap() >= 1);
        assert!(device.memory.unwrap().0 > 64 << 20);
    }
}
