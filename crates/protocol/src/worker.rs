//! The worker protocol: one JSON object a line, UTF-8, on the worker's stdin and stdout.
//!
//! Control only: pixels pass through sealed memory slots that a message names by path, weights through files. Requests
//! carry `id` and their answers `re`; messages about work carry `work` = (run, job, attempt), and whatever does not match
//! the current attempt is dropped and counted. The Python half is `worker/src/atelier_worker/messages.py`; shape and
//! vectors (`contract/vectors`) are compared in both languages.
//!
//! A run's life: `run` → `started` per item → `progress`… → `image` per item → `done`, or `failed` at any point.
//! A cancelled run answers `failed` with `processing.cancelled` and the step that it had reached.

use crate::error_code::{Detail, ErrorCode};
use crate::ids::{DeviceId, JobId, RunId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Exact match or refusal: both halves ship together, so tolerance would only hide mistakes.
pub const PROTOCOL: u32 = 1;
/// Longest line in bytes, in either direction, without its newline.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// Bad lines in a row after which the worker is ended.
pub const MAX_BAD_LINES: u32 = 100;
/// Exit status of a worker that was welcomed with another protocol number.
pub const EXIT_VERSION_MISMATCH: i32 = 64;
/// Exit status of a worker that gave up after `bad_lines` unreadable lines in a row.
pub const EXIT_BAD_LINES: i32 = 65;

/// What the orchestrator says to a worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// The answer to `hello`. The worker imports its heavy libraries after this, then says `ready`.
    Welcome { protocol: u32, limits: Limits, budget: Budget },
    /// Ask what the libraries see. The only message that may touch devices before a `load`.
    ProbeDevices { id: u64 },
    /// Put a model on a device. Answered by `loaded`, or `failed` with everything rolled back.
    Load {
        id: u64,
        /// The work that waits for this, where there is one: `progress` and `cancel` name it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        work: Option<Work>,
        model: ModelSource,
        device: DeviceId,
        numerics: Numerics,
    },
    /// Take a model off its device. Answered by `unloaded`.
    Unload { id: u64, model: String },
    /// Time one denoise step of a model under each candidate. Answered by `measured`; what is loaded stays loaded.
    Measure {
        id: u64,
        model: ModelSource,
        device: DeviceId,
        candidates: Vec<Numerics>,
        width: u32,
        height: u32,
    },
    /// Draw. Every number was filled in by the planner; the worker decides nothing that a user could ask about.
    Run { run: RunId, model: String, device: DeviceId, items: Vec<RunItem>, steps: Vec<PlanStep> },
    /// Stop this work at the next step. Acknowledged by `failed` with `processing.cancelled`.
    Cancel { work: Work },
    /// End after what is running. Answered by `bye`.
    Shutdown {},
}

/// What a worker says to the orchestrator.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// The first line, before any heavy import.
    Hello { protocol: u32, build: String, python: String, pid: u32, schema_hash: String },
    /// Imports are done and `run` may come. A message, never a pause.
    Ready { versions: BTreeMap<String, String>, backends: Vec<String>, max_inflight: u32 },
    /// Answer to `probe_devices`.
    Devices { re: u64, devices: Vec<WorkerDevice> },
    /// Answer to `load`: bytes on the device and the time it took.
    Loaded { re: u64, model: String, bytes: u64, load_ms: f64 },
    /// Answer to `unload`: bytes that came back.
    Unloaded { re: u64, model: String, bytes: u64 },
    /// Answer to `measure`, one entry a candidate that ran, in the order asked.
    Measured { re: u64, results: Vec<Measurement> },
    /// Work on this item has begun.
    Started { work: Work },
    /// `step` units of a phase are behind us; 0 declares that it begins.
    Progress { work: Work, phase: Phase, step: u32, steps: u32, step_ms: f64 },
    /// A picture lies in its slot. The checksum covers exactly `bytes` bytes from `offset`.
    Image {
        work: Work,
        slot: String,
        offset: u64,
        bytes: u64,
        width: u32,
        height: u32,
        channels: u32,
        crc32c: u32,
    },
    /// This item is finished and its image was sent.
    Done { work: Work, timings: RunTimings },
    /// A request (`re`) or an item (`work`) failed; exactly one of the two is given.
    Failed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        re: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        work: Option<Work>,
        /// Step reached, where the failure happened between steps.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<u32>,
        error: WorkerError,
    },
    /// Memory held by the worker, sent when it changes much: resident host bytes and bytes on its device.
    Usage {
        rss_bytes: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device_bytes: Option<u64>,
    },
    /// Last line of an orderly end.
    Bye {},
}

/// The fence around work: an answer counts only while all three are current.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Work {
    pub run: RunId,
    pub job: JobId,
    pub attempt: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub line_bytes: u64,
    pub bad_lines: u32,
}

/// What the worker may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// CPU threads; workers × threads never exceed the cores.
    pub threads: u32,
}

/// Where a model's files are. A diffusers folder for now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ModelSource {
    pub model: String,
    /// Absolute path of a folder with `model_index.json`.
    pub folder: String,
}

/// How numbers are computed. Each field changes pixels, so it is chosen once per device, stored, and recorded in every
/// picture; nothing switches it by itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Numerics {
    pub dtype: Dtype,
    pub memory_format: MemoryFormat,
    /// CPU threads inside one operation.
    pub threads: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    Float32,
    Float16,
    Bfloat16,
}

impl Dtype {
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
        }
    }
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MemoryFormat {
    Contiguous,
    ChannelsLast,
}

/// One candidate and its median time for one denoise step.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    pub numerics: Numerics,
    pub step_ms: f64,
}

/// One picture of a run. Items of one run are computed as one batch, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RunItem {
    pub job: JobId,
    pub attempt: u32,
    /// Seed of torch's CPU generator for this picture. Up to 2^63 − 1.
    pub seed: u64,
    pub slot: Slot,
}

/// A sealed memory file made by the orchestrator; the worker opens it by path and writes raw pixels.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Slot {
    pub slot: String,
    pub path: String,
    pub bytes: u64,
}

/// One step of a plan, already validated.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum PlanStep {
    /// Text to conditioning. The negative prompt is used where guidance needs one.
    EncodePrompt { prompt: String, negative_prompt: String },
    /// Noise for every item, from torch's CPU generator in the run's precision, as diffusers does. Size in pixels.
    MakeLatents { width: u32, height: u32 },
    /// Steps `from` (included) to `to` (excluded) of a schedule of `steps`. Classifier-free guidance when the scale > 1.
    Denoise { scheduler: SchedulerPlan, steps: u32, guidance_scale: f64, from: u32, to: u32 },
    /// Latents to RGB pixels in the items' slots.
    Decode {},
}

/// A diffusers scheduler class, built from the model's own scheduler configuration with these values on top.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SchedulerPlan {
    pub class: String,
    #[serde(default)]
    pub config: BTreeMap<String, serde_json::Value>,
}

/// A device as the worker's PyTorch sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WorkerDevice {
    pub id: DeviceId,
    pub name: String,
    pub backend: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    pub dtypes: Vec<Dtype>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Load,
    Encode,
    /// Declared with step 0 before a compiler starts: it may hold the interpreter for minutes.
    Compile,
    Denoise,
    Decode,
}

impl Phase {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Encode => "encode",
            Self::Compile => "compile",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// Milliseconds spent in each phase of a run.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RunTimings {
    pub encode_ms: f64,
    pub denoise_ms: f64,
    pub decode_ms: f64,
}

/// An error as the worker knows it; hint and advice come from the table on this side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WorkerError {
    pub code: ErrorCode,
    pub message: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Detail>,
}
