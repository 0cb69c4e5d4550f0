//! Checks a request against the catalogue and fills in every default. All problems are reported at once.

use super::fields::Fields;
use super::scheduler::{SCHEDULERS, Scheduler};
use crate::device::DeviceHandle;
use crate::model::{Model, ModelHandle};
use atelier_protocol::http::{
    Capabilities, JobRequest, OutputRequest, RequestLimits, ResolvedOutput, ResolvedRequest,
};
use atelier_protocol::{Detail, DeviceId, ErrorBody, ErrorCode};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The kinds of job that are built: the values of `kind`.
pub const KINDS: [&str; 1] = ["text_to_image"];
const FORMATS: [&str; 3] = ["png", "jpeg", "webp"];
const MAX_LABELS: usize = 32;
const MAX_LABEL_CHARS: usize = 200;

/// What this node allows in a request, beside what the model can do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    pub max_prompt_chars: usize,
    pub max_count: u32,
    pub max_steps: u32,
    pub max_guidance_scale: f64,
    /// Seeds stay below 2^53, so that picture *i*'s seed is a number in every client.
    pub max_seed: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_prompt_chars: 10_000,
            max_count: 64,
            max_steps: 1_000,
            max_guidance_scale: 100.0,
            max_seed: (1 << 53) - 1,
        }
    }
}

/// A request that can be run, and what its sender should know.
#[derive(Clone, PartialEq, Debug)]
pub struct Resolved {
    pub request: ResolvedRequest,
    pub warnings: Vec<Detail>,
}

/// The inference domain as everyone else sees it.
#[derive(Clone, Debug)]
pub struct Inference {
    models: ModelHandle,
    devices: DeviceHandle,
    limits: Limits,
}

impl Inference {
    #[must_use]
    pub fn new(models: ModelHandle, devices: DeviceHandle) -> Self {
        Self { models, devices, limits: Limits::default() }
    }

    pub(super) fn models(&self) -> &ModelHandle {
        &self.models
    }

    /// What can be asked for now.
    #[must_use]
    pub fn capabilities(&self, max_body_bytes: u64) -> Capabilities {
        let limits = self.limits;
        let usable = |device: &&crate::device::Device| device.is_usable();
        Capabilities {
            kinds: KINDS.map(str::to_owned).to_vec(),
            families: vec!["stable_diffusion".to_owned()],
            schedulers: SCHEDULERS.iter().map(Scheduler::entry).collect(),
            output_formats: FORMATS.map(str::to_owned).to_vec(),
            limits: RequestLimits {
                max_prompt_chars: u32::try_from(limits.max_prompt_chars).unwrap_or(u32::MAX),
                max_count: limits.max_count,
                max_steps: limits.max_steps,
                max_guidance_scale: limits.max_guidance_scale,
                max_seed: limits.max_seed,
                max_body_bytes,
            },
            devices: self
                .devices
                .view()
                .devices
                .iter()
                .filter(usable)
                .map(|d| d.id.to_string())
                .collect(),
        }
    }

    /// Checks a request given as JSON. Form problems (unknown fields, types) and value problems are reported together,
    /// under `request.invalid` where there is a form problem and `inference.invalid` otherwise; a model that cannot be
    /// used has its own code when nothing else is wrong.
    pub fn resolve(&self, body: &Value, random_seed: u64) -> Result<Resolved, ErrorBody> {
        let Some(object) = body.as_object() else {
            return Err(ErrorBody::new(
                ErrorCode::RequestInvalid,
                "the body must be a JSON object",
            ));
        };
        let (request, form) = read(object);
        let mut values = Vec::new();
        let resolved = self.check(&request, random_seed, &mut values);
        let model_problem = resolved.as_ref().err().cloned();
        // A field of the wrong type was read as absent; what follows from its absence is no second problem.
        values.retain(|value| !form.iter().any(|problem| problem.field == value.field));
        if form.is_empty() && values.is_empty() {
            return resolved;
        }
        let code =
            if form.is_empty() { ErrorCode::InferenceInvalid } else { ErrorCode::RequestInvalid };
        let mut details = form;
        details.extend(values);
        if let Some(problem) = model_problem {
            details.push(Detail::new("model", problem.message));
        }
        let count = match details.len() {
            1 => "one problem".to_owned(),
            n => format!("{n} problems"),
        };
        Err(ErrorBody::new(code, format!("the request has {count}")).with_details(details))
    }

    fn check(
        &self,
        request: &JobRequest,
        random_seed: u64,
        problems: &mut Vec<Detail>,
    ) -> Result<Resolved, ErrorBody> {
        let mut problem = |field: &str, message: String| problems.push(Detail::new(field, message));
        let limits = self.limits;
        let mut warnings = Vec::new();

        if !KINDS.contains(&request.kind.as_str()) {
            let known = KINDS.join(", ");
            problem(
                "kind",
                match request.kind.as_str() {
                    "" => format!("is missing; known kinds are {known}"),
                    other => format!("`{other}` is not a kind of job; known kinds are {known}"),
                },
            );
        }
        let prompt = request.prompt.clone().unwrap_or_default();
        if prompt.trim().is_empty() {
            problem("prompt", "must say what to draw".to_owned());
        }
        for (field, text) in [
            ("prompt", &prompt),
            ("negative_prompt", request.negative_prompt.as_ref().unwrap_or(&String::new())),
        ] {
            let chars = text.chars().count();
            if chars > limits.max_prompt_chars {
                let most = limits.max_prompt_chars;
                problem(field, format!("has {chars} characters; at most {most} are allowed"));
            }
        }
        let count = request.count.unwrap_or(1);
        if count == 0 || count > limits.max_count {
            problem("count", format!("must be 1 to {}, not {count}", limits.max_count));
        }
        let guidance = request.guidance_scale;
        if let Some(g) = guidance.filter(|g| !(0.0..=limits.max_guidance_scale).contains(g)) {
            problem(
                "guidance_scale",
                format!("must be 0 to {}, not {g}", limits.max_guidance_scale),
            );
        }
        let last = limits.max_seed.saturating_sub(u64::from(count.max(1) - 1));
        if let Some(seed) = request.seed.filter(|seed| *seed > last) {
            problem("seed", format!("must be 0 to {last} for {count} pictures, not {seed}"));
        }
        let scheduler = request.scheduler.as_deref().map(|name| {
            let found = Scheduler::find(name);
            if found.is_none() {
                let known: Vec<_> = SCHEDULERS.iter().map(|row| row.name).collect();
                let known = known.join(", ");
                problem("scheduler", format!("`{name}` is not known; known are {known}"));
            }
            found
        });
        let output = check_output(request.output.as_ref(), &mut problem);
        if let Some(device) = &request.device {
            match self.devices.get(&DeviceId(device.clone())) {
                Err(error) => problem("device", error.to_string()),
                Ok(device) if !device.is_usable() => {
                    problem("device", format!("{} cannot be used here", device.id));
                }
                Ok(_) => {}
            }
        }
        check_labels(&request.labels, &mut problem);

        let model = self.models.resolve(request.model.as_deref());
        let model: Arc<Model> = match model {
            Ok(model) => model,
            Err(error) => {
                if request.steps == Some(0) {
                    problem("steps", "must be at least 1".to_owned());
                }
                return Err(error.into());
            }
        };
        let bounds = model.card.limits;
        let defaults = &model.card.defaults;
        let steps = request.steps.unwrap_or(defaults.steps);
        let most = bounds.max_steps.min(limits.max_steps);
        if steps == 0 || steps > most {
            problem("steps", format!("must be 1 to {most} for {}, not {steps}", model.id));
        }
        let width = request.width.unwrap_or(defaults.width);
        let height = request.height.unwrap_or(defaults.height);
        for (field, size) in [("width", width), ("height", height)] {
            let possible = (bounds.min_size..=bounds.max_size).contains(&size)
                && size.is_multiple_of(bounds.multiple_of);
            if !possible {
                let (min, max, step) = (bounds.min_size, bounds.max_size, bounds.multiple_of);
                problem(
                    field,
                    format!(
                        "must be {min} to {max} in steps of {step} for {}, not {size}",
                        model.id
                    ),
                );
            }
        }
        if let Some(vocabulary) = &model.card.vocabulary {
            for (field, text) in
                [("prompt", Some(&prompt)), ("negative_prompt", request.negative_prompt.as_ref())]
            {
                let unknown = vocabulary.unknown(text.map_or("", String::as_str));
                if !unknown.is_empty() {
                    let words: Vec<_> = unknown.iter().map(|word| format!("`{word}`")).collect();
                    let message = format!(
                        "{} never saw {}: it is a small model that knows emoji subjects. Use words from its card \
                         (`atelier models show {}`), or add a larger model to the models folder",
                        model.title,
                        words.join(", "),
                        model.id
                    );
                    warnings.push(Detail::new(field, message));
                }
            }
        }
        // Without a card the model's own default is the class that its folder names.
        let default = Scheduler::find(&defaults.scheduler)
            .or_else(|| Scheduler::of_class(&defaults.scheduler))
            .unwrap_or(&SCHEDULERS[0]);
        let scheduler = scheduler.flatten().unwrap_or(default).name;
        Ok(Resolved {
            request: ResolvedRequest {
                kind: request.kind.clone(),
                model: model.id.clone(),
                prompt,
                negative_prompt: request.negative_prompt.clone().unwrap_or_default(),
                width,
                height,
                steps,
                guidance_scale: guidance.unwrap_or(defaults.guidance_scale),
                scheduler: scheduler.to_owned(),
                seed: request.seed.unwrap_or(random_seed % (1 << 32)),
                count,
                output,
                device: request.device.clone(),
                noise_source: "torch_cpu".to_owned(),
                batching: "alone".to_owned(),
                labels: request.labels.clone(),
            },
            warnings,
        })
    }
}

fn read(object: &serde_json::Map<String, Value>) -> (JobRequest, Vec<Detail>) {
    let small = |value: Option<u64>| value.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let mut fields = Fields::new(object, "");
    let mut nested = Vec::new();
    let request = JobRequest {
        kind: fields.text("kind").unwrap_or_default(),
        model: fields.text("model"),
        prompt: fields.text("prompt"),
        negative_prompt: fields.text("negative_prompt"),
        width: small(fields.whole("width")),
        height: small(fields.whole("height")),
        steps: small(fields.whole("steps")),
        guidance_scale: fields.number("guidance_scale"),
        scheduler: fields.text("scheduler"),
        seed: fields.seed("seed"),
        count: small(fields.whole("count")),
        output: fields.object("output").map(|output| {
            let mut fields = Fields::new(output, "output");
            let output = OutputRequest {
                format: fields.text("format"),
                quality: fields.whole("quality").map(|n| u8::try_from(n).unwrap_or(u8::MAX)),
                metadata: fields.flag("metadata"),
            };
            nested.extend(fields.finish());
            output
        }),
        device: fields.text("device"),
        labels: fields.object("labels").map_or_else(BTreeMap::new, |labels| {
            let mut out = BTreeMap::new();
            for (key, value) in labels {
                match value.as_str() {
                    Some(text) => drop(out.insert(key.clone(), text.to_owned())),
                    None => nested.push(Detail::new(format!("labels.{key}"), "must be a string")),
                }
            }
            out
        }),
    };
    let mut problems = fields.finish();
    problems.extend(nested);
    (request, problems)
}

fn check_output(
    asked: Option<&OutputRequest>,
    problem: &mut impl FnMut(&str, String),
) -> ResolvedOutput {
    let asked = asked.cloned().unwrap_or_default();
    let format = match asked.format.as_deref().map(str::to_lowercase).as_deref() {
        None => "png".to_owned(),
        Some("jpg") => "jpeg".to_owned(),
        Some(format) if FORMATS.contains(&format) => format.to_owned(),
        Some(other) => {
            problem(
                "output.format",
                format!("`{other}` is not known; known are png, jpeg and webp"),
            );
            "png".to_owned()
        }
    };
    let quality = match (asked.quality, format.as_str()) {
        (None, "jpeg") => Some(90),
        (None, _) => None,
        (Some(quality), "jpeg") => {
            if !(1..=100).contains(&quality) {
                problem("output.quality", "must be 1 to 100".to_owned());
            }
            Some(quality)
        }
        (Some(_), format) => {
            problem(
                "output.quality",
                format!("has no meaning for {format}, which keeps every pixel"),
            );
            None
        }
    };
    ResolvedOutput { format, quality, metadata: asked.metadata.unwrap_or(true) }
}

fn check_labels(labels: &BTreeMap<String, String>, problem: &mut impl FnMut(&str, String)) {
    if labels.len() > MAX_LABELS {
        problem(
            "labels",
            format!("has {} entries; at most {MAX_LABELS} are allowed", labels.len()),
        );
    }
    for (key, value) in labels {
        if key.chars().count().max(value.chars().count()) > MAX_LABEL_CHARS {
            problem(
                "labels",
                format!("names and values have at most {MAX_LABEL_CHARS} characters"),
            );
        }
    }
}
