//! From a resolved request to the steps of a worker. Pure.

use super::check::Inference;
use super::scheduler::Scheduler;
use crate::processing::{Placement, Plan, Planner};
use atelier_protocol::http::ResolvedRequest;
use atelier_protocol::worker::PlanStep;
use atelier_protocol::{Detail, ErrorBody, ErrorCode};

impl Planner for Inference {
    /// Encode, noise, denoise, decode: text-to-image of the Stable Diffusion family (Rombach et al. 2022) with
    /// classifier-free guidance (Ho & Salimans 2022). Pixels come out as `height` × `width` × RGB, 8 bits.
    fn plan(&self, request: &ResolvedRequest, at: Placement) -> Result<Plan, ErrorBody> {
        let model = self.models().resolve(Some(&request.model))?;
        let scheduler = Scheduler::find(&request.scheduler).ok_or_else(|| {
            let detail = Detail::new("scheduler", "this version does not know it any more");
            ErrorBody::new(ErrorCode::InferenceInvalid, "the request cannot be drawn")
                .with_details(vec![detail])
        })?;
        let (width, height) = (request.width, request.height);
        Ok(Plan {
            steps: vec![
                PlanStep::EncodePrompt {
                    prompt: request.prompt.clone(),
                    negative_prompt: request.negative_prompt.clone(),
                },
                PlanStep::MakeLatents { width, height },
                PlanStep::Denoise {
                    scheduler: scheduler.plan(),
                    steps: request.steps,
                    guidance_scale: request.guidance_scale,
                    from: 0,
                    to: request.steps,
                },
                PlanStep::Decode {},
            ],
            seed: request.seed + u64::from(at.index),
            width,
            height,
            denoise_steps: request.steps,
            peak: model.peak_bytes(width, height, 1, at.dtype),
        })
    }
}
