//! How numbers are computed on a device: dtype, memory layout, threads. Chosen once by measuring, stored, and written into
//! every picture, because each of them changes pixels.

use crate::device::Device;
use atelier_protocol::worker::{Dtype, Measurement, MemoryFormat, Numerics};
use serde::{Deserialize, Serialize};

/// A choice with its evidence, as stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Profile {
    pub(super) numerics: Numerics,
    pub(super) measured: Vec<Measurement>,
}

/// A narrower precision must be this much faster on a CPU before it is worth its rounding.
const WORTH_ROUNDING: f64 = 1.25;
/// Differences below this are noise; the earlier candidate, which is the plainer one, wins.
const NOISE: f64 = 1.03;

/// Where the profile of a device is stored. Another torch or another processor is another profile.
pub(super) fn setting_key(device: &Device, torch: &str) -> String {
    let cores = device.cores.unwrap_or(0);
    format!("numerics/{}/{}/{cores}/{torch}", device.id, device.name)
}

/// What is worth measuring, the plainest first.
pub(super) fn candidates(device: &Device) -> Vec<Numerics> {
    use Dtype::{Bfloat16, Float16, Float32};
    use MemoryFormat::{ChannelsLast, Contiguous};
    let cores = device.cores.unwrap_or(1).max(1);
    let dtypes: &[Dtype] = if device.id.is_cpu() { &[Float32, Bfloat16] } else { &[Float16] };
    let threads =
        if device.id.is_cpu() && cores > 1 { vec![cores, cores / 2] } else { vec![cores.min(8)] };
    let mut out = Vec::new();
    for &dtype in dtypes {
        for &threads in &threads {
            for memory_format in [Contiguous, ChannelsLast] {
                out.push(Numerics { dtype, memory_format, threads });
            }
        }
    }
    out
}

/// The fastest, but for rounding that gains little and differences that are noise.
pub(super) fn choose(measured: &[Measurement]) -> Option<Numerics> {
    let cost = |m: &Measurement| match m.numerics.dtype {
        Dtype::Float32 | Dtype::Float16 => m.step_ms,
        Dtype::Bfloat16 => m.step_ms * WORTH_ROUNDING,
    };
    let measured: Vec<_> =
        measured.iter().filter(|m| m.step_ms.is_finite() && m.step_ms > 0.0).collect();
    let best = measured.iter().map(|m| cost(m)).min_by(f64::total_cmp)?;
    let chosen = measured.iter().find(|m| cost(m) <= best * NOISE)?;
    Some(chosen.numerics.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(dtype: Dtype, threads: u32, step_ms: f64) -> Measurement {
        let memory_format = MemoryFormat::Contiguous;
        Measurement { numerics: Numerics { dtype, memory_format, threads }, step_ms }
    }

    #[test]
    fn the_fastest_is_chosen() {
        let all = [measured(Dtype::Float32, 2, 130.0), measured(Dtype::Float32, 1, 90.0)];
        assert_eq!(choose(&all).map(|n| n.threads), Some(1));
    }

    #[test]
    fn a_narrower_precision_must_be_worth_its_rounding() {
        let all = [measured(Dtype::Float32, 2, 100.0), measured(Dtype::Bfloat16, 2, 90.0)];
        assert_eq!(choose(&all).map(|n| n.dtype), Some(Dtype::Float32));
        let all = [measured(Dtype::Float32, 2, 100.0), measured(Dtype::Bfloat16, 2, 50.0)];
        assert_eq!(choose(&all).map(|n| n.dtype), Some(Dtype::Bfloat16));
    }

    #[test]
    fn noise_does_not_decide_and_nonsense_is_no_measurement() {
        let all = [
            measured(Dtype::Float32, 3, f64::NAN),
            measured(Dtype::Float32, 2, 101.0),
            measured(Dtype::Float32, 1, 100.0),
        ];
        assert_eq!(choose(&all).map(|n| n.threads), Some(2));
        assert_eq!(choose(&[]), None);
    }
}
