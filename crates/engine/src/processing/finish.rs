//! What processing needs from above to turn raw pixels into a file. Implemented by postprocessing, injected by the node.

use atelier_protocol::http::ResolvedRequest;
use atelier_protocol::worker::Numerics;
use atelier_protocol::{DeviceId, ErrorBody, JobId};
use std::collections::BTreeMap;

/// Pixels as the worker wrote them: rows from the top, `channels` bytes a pixel, no padding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawImage {
    pub width: u32,
    pub height: u32,
    /// 3 (RGB) or 4 (RGBA).
    pub channels: u32,
    pub pixels: Vec<u8>,
}

/// Everything that a picture should remember about how it came to be.
#[derive(Clone, PartialEq, Debug)]
pub struct PictureFacts {
    pub job: JobId,
    pub request: ResolvedRequest,
    /// Position among the pictures of the job; its seed is the request's seed + index.
    pub index: u32,
    pub seed: u64,
    pub model_title: String,
    /// BLAKE3 over the model's tensors.
    pub model_blake3: Option<String>,
    pub device: DeviceId,
    pub numerics: Numerics,
    /// Versions that change pixels: torch, diffusers, …, as the worker reported them.
    pub versions: BTreeMap<String, String>,
    /// Pictures in the batch that this one was computed in, and its place there.
    pub batch_size: u32,
    pub batch_slot: u32,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// A finished file in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded {
    pub bytes: Vec<u8>,
    pub media_type: &'static str,
    /// Without the dot.
    pub extension: &'static str,
}

/// Turns pixels into a file. Pure and blocking; called off the async threads.
pub trait Finisher: Send + Sync {
    fn finish(&self, image: RawImage, facts: &PictureFacts) -> Result<Encoded, ErrorBody>;
}
