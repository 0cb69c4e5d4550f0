//! The `parameters` text in the form that A1111 writes and most tools read.

use crate::processing::PictureFacts;
use std::fmt::Write;

/// A scheduler by the names that A1111 knows it by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SamplerName {
    /// `DPM++ 2M`.
    pub sampler: String,
    /// `Karras`; absent where the sampler has no choice or it is not known.
    pub schedule_type: Option<String>,
}

/// First line the prompt, then the negative prompt if there is one, then the settings in one line.
pub(super) fn infotext(facts: &PictureFacts, name: &SamplerName, software: &str) -> String {
    let request = &facts.request;
    let mut text = request.prompt.clone();
    if !request.negative_prompt.is_empty() {
        let _ = write!(text, "\nNegative prompt: {}", request.negative_prompt);
    }
    let model = Some(facts.model_title.as_str()).filter(|title| !title.is_empty());
    let hash = facts.model_blake3.as_ref().map(|hash| hash.chars().take(10).collect());
    let settings = [
        ("Steps", Some(request.steps.to_string())),
        ("Sampler", Some(name.sampler.clone())),
        ("Schedule type", name.schedule_type.clone()),
        ("CFG scale", Some(request.guidance_scale.to_string())), // 4, not 4.0
        ("Seed", Some(facts.seed.to_string())),
        ("Size", Some(format!("{}x{}", request.width, request.height))),
        ("Model hash", hash),
        ("Model", Some(model.unwrap_or(&request.model).to_owned())),
        ("Version", Some(software.to_owned())),
    ];
    let settings: Vec<String> = settings
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}: {}", quoted(&value?))))
        .collect();
    let _ = write!(text, "\n{}", settings.join(", "));
    // No text chunk may hold a zero, and no reader of this form expects one. The bundle keeps it.
    text.replace('\0', "")
}

/// A value that holds what separates values stands in quotes, as JSON.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n']) {
        serde_json::to_string(value).expect("a string")
    } else {
        value.to_owned()
    }
}
