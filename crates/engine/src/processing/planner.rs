//! What processing needs from above to turn a request into work. Implemented by inference, injected by the node; also what
//! validation calls, so that a dry run cannot lie.

use atelier_protocol::http::ResolvedRequest;
use atelier_protocol::worker::{Dtype, PlanStep};
use atelier_protocol::{Bytes, ErrorBody};

/// Where and for which picture a plan is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// Width of a number on the device.
    pub dtype: Dtype,
    /// Position of the picture in the job.
    pub index: u32,
}

/// Work for one worker and one model. Made when it is needed and never stored as truth.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    pub steps: Vec<PlanStep>,
    pub seed: u64,
    pub width: u32,
    pub height: u32,
    /// Denoise steps, for progress.
    pub denoise_steps: u32,
    /// Memory beside the weights while it runs.
    pub peak: Bytes,
}

/// Turns a request into work. Pure: no I/O, no clock.
pub trait Planner: Send + Sync {
    fn plan(&self, request: &ResolvedRequest, at: Placement) -> Result<Plan, ErrorBody>;
}
