//! What a model says about itself: `atelier.json` in its folder, and what follows from its
//! configurations without one.

use super::{Problem, StableDiffusion, Vocabulary};
use crate::files;
use atelier_protocol::http::{ModelDefaults, ModelLimits};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// Name of the card in a model's folder.
pub(super) const CARD_FILE: &str = "atelier.json";
/// Larger pictures than this need tiling, whatever the model.
const MAX_SIZE: u32 = 2048;
const MIN_SIZE: u32 = 64;
const MAX_STEPS: u32 = 150;
const STEPS: u32 = 30;
const GUIDANCE_SCALE: f64 = 7.5;

/// Limits, defaults and everything else that a request for this model needs.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelCard {
    pub license: Option<String>,
    pub credits: Vec<String>,
    pub notes: Option<String>,
    pub limits: ModelLimits,
    /// `scheduler` is our name where the card gives one, and the model's scheduler class
    /// (`PNDMScheduler`) otherwise.
    pub defaults: ModelDefaults,
    pub scheduler: SchedulerConfig,
    /// Words that the model was taught; absent for models that know most.
    pub vocabulary: Option<Arc<Vocabulary>>,
    /// A toy, taken for requests without a model only when nothing else is here.
    pub fallback: bool,
}

/// The scheduler that the model was published with: `scheduler/scheduler_config.json`.
#[derive(Clone, PartialEq, Debug)]
pub struct SchedulerConfig {
    pub class: String,
    /// All of the file but its own bookkeeping (keys that begin with an underscore).
    pub config: Map<String, Value>,
}

/// The file as written. Unknown keys are refused, since a limit that is misspelt is no limit.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct CardFile {
    title: Option<String>,
    license: Option<String>,
    #[serde(default)]
    credits: Vec<String>,
    notes: Option<String>,
    limits: Option<ModelLimits>,
    defaults: Option<ModelDefaults>,
    /// Name of a word list in the same folder.
    vocabulary: Option<String>,
    #[serde(default)]
    fallback: bool,
}

/// Reads the card of a folder, if it has one, and completes it. The title is given back beside it.
pub(super) fn read(
    folder: &Path,
    facts: &StableDiffusion,
    scheduler: SchedulerConfig,
) -> Result<(Option<String>, ModelCard), Problem> {
    let path = folder.join(CARD_FILE);
    let file = if path.exists() {
        let text = files::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?
    } else {
        CardFile::default()
    };
    let vocabulary = match &file.vocabulary {
        None => None,
        Some(name) if name.contains('/') || name.starts_with('.') => {
            return Err(fail(format!("vocabulary `{name}` is not the name of a file beside it")));
        }
        Some(name) => {
            let text = files::read_to_string(&folder.join(name))
                .map_err(|error| fail(format!("vocabulary: {error}")))?;
            Some(Arc::new(Vocabulary::parse(&text)))
        }
    };
    complete(file, facts, scheduler, vocabulary)
}

fn fail(reason: String) -> Problem {
    Problem::Card { reason }
}

fn complete(
    file: CardFile,
    facts: &StableDiffusion,
    scheduler: SchedulerConfig,
    vocabulary: Option<Arc<Vocabulary>>,
) -> Result<(Option<String>, ModelCard), Problem> {
    let limits = file.limits.unwrap_or_else(|| default_limits(facts));
    check_limits(limits, facts)?;
    let defaults = file.defaults.unwrap_or_else(|| {
        let fit = |side: u32| {
            (side / limits.multiple_of * limits.multiple_of).clamp(limits.min_size, limits.max_size)
        };
        ModelDefaults {
            width: fit(facts.native_width),
            height: fit(facts.native_height),
            steps: STEPS.min(limits.max_steps),
            guidance_scale: GUIDANCE_SCALE,
            scheduler: scheduler.class.clone(),
        }
    });
    check_defaults(&defaults, limits)?;
    let card = ModelCard {
        license: file.license,
        credits: file.credits,
        notes: file.notes,
        limits,
        defaults,
        scheduler,
        vocabulary,
        fallback: file.fallback,
    };
    Ok((file.title, card))
}

/// Up to twice the size that the model was trained at: beyond it pictures repeat themselves.
fn default_limits(facts: &StableDiffusion) -> ModelLimits {
    let multiple_of = facts.multiple_of;
    let native = facts.native_width.max(facts.native_height);
    let max_size = (native.saturating_mul(2).min(MAX_SIZE) / multiple_of).max(1) * multiple_of;
    ModelLimits {
        min_size: (MIN_SIZE.div_ceil(multiple_of) * multiple_of).min(max_size),
        max_size,
        multiple_of,
        max_steps: MAX_STEPS,
    }
}

fn check_limits(limits: ModelLimits, facts: &StableDiffusion) -> Result<(), Problem> {
    let ModelLimits { min_size, max_size, multiple_of, max_steps } = limits;
    if multiple_of == 0 || !multiple_of.is_multiple_of(facts.multiple_of) {
        let needed = facts.multiple_of;
        return Err(fail(format!(
            "multiple_of is {multiple_of}; the model needs multiples of {needed}"
        )));
    }
    if min_size == 0
        || min_size > max_size
        || !min_size.is_multiple_of(multiple_of)
        || !max_size.is_multiple_of(multiple_of)
    {
        return Err(fail(format!(
            "min_size {min_size} and max_size {max_size} must be multiples of {multiple_of} in this order"
        )));
    }
    if max_steps == 0 {
        return Err(fail("max_steps is 0".to_owned()));
    }
    Ok(())
}

fn check_defaults(defaults: &ModelDefaults, limits: ModelLimits) -> Result<(), Problem> {
    let ModelDefaults { width, height, steps, guidance_scale, scheduler } = defaults;
    for (name, side) in [("width", *width), ("height", *height)] {
        let within = (limits.min_size..=limits.max_size).contains(&side);
        if !within || !side.is_multiple_of(limits.multiple_of) {
            return Err(fail(format!("the default {name} {side} is outside of the limits")));
        }
    }
    if !(1..=limits.max_steps).contains(steps) {
        return Err(fail(format!("the default of {steps} steps is outside of the limits")));
    }
    if !guidance_scale.is_finite() || *guidance_scale < 0.0 {
        return Err(fail(format!("the default guidance_scale is {guidance_scale}")));
    }
    if scheduler.is_empty() {
        return Err(fail("the default scheduler is empty".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::stable_diffusion::tests::demo;

    fn scheduler() -> SchedulerConfig {
        SchedulerConfig { class: "PNDMScheduler".to_owned(), config: Map::new() }
    }

    fn card(text: &str) -> Result<(Option<String>, ModelCard), Problem> {
        let folder = tempfile::tempdir().unwrap();
        files::write_atomic(&folder.path().join(CARD_FILE), text.as_bytes()).unwrap();
        files::write_atomic(&folder.path().join("words.txt"), b"apple\n").unwrap();
        read(folder.path(), &demo(), scheduler())
    }

    #[test]
    fn without_a_card_everything_follows_from_the_configurations() {
        let folder = tempfile::tempdir().unwrap();
        let (title, card) = read(folder.path(), &demo(), scheduler()).unwrap();
        assert_eq!(title, None);
        let limits = ModelLimits { min_size: 64, max_size: 256, multiple_of: 16, max_steps: 150 };
        assert_eq!(card.limits, limits);
        assert_eq!((card.defaults.width, card.defaults.steps), (128, 30));
        assert_eq!(card.defaults.scheduler, "PNDMScheduler");
        assert!(!card.fallback);
    }

    #[test]
    fn a_card_names_words_limits_and_defaults() {
        let (title, card) = card(
            r#"{"title": "T", "license": "MIT", "credits": ["C"], "vocabulary": "words.txt", "fallback": true,
                "limits": {"min_size": 64, "max_size": 128, "multiple_of": 32, "max_steps": 50},
                "defaults": {"width": 64, "height": 96, "steps": 20, "guidance_scale": 4.0, "scheduler": "ddim"}}"#,
        )
        .unwrap();
        assert_eq!(title.as_deref(), Some("T"));
        assert_eq!(card.vocabulary.unwrap().unknown("apple pear"), ["pear"]);
        assert_eq!((card.limits.multiple_of, card.defaults.height), (32, 96));
    }

    #[test]
    fn a_card_that_cannot_be_meant_is_refused_with_the_reason() {
        let limits = |min: u32, max: u32, multiple: u32, steps: u32| {
            format!(
                r#"{{"limits": {{"min_size": {min}, "max_size": {max}, "multiple_of": {multiple}, "max_steps": {steps}}}}}"#
            )
        };
        let defaults = |width: u32, steps: u32, guidance: &str, scheduler: &str| {
            format!(
                r#"{{"defaults": {{"width": {width}, "height": 128, "steps": {steps}, "guidance_scale": {guidance}, "scheduler": "{scheduler}"}}}}"#
            )
        };
        for (text, reason) in [
            ("{".to_owned(), "EOF"),
            (r#"{"titel": "T"}"#.to_owned(), "unknown field `titel`"),
            (r#"{"vocabulary": "../../etc/passwd"}"#.to_owned(), "not the name of a file"),
            (r#"{"vocabulary": "gone.txt"}"#.to_owned(), "failed to read"),
            (limits(64, 256, 8, 150), "needs multiples of 16"),
            (limits(64, 256, 0, 150), "multiple_of is 0"),
            (limits(256, 64, 16, 150), "in this order"),
            (limits(0, 64, 16, 150), "in this order"),
            (limits(60, 256, 16, 150), "must be multiples"),
            (limits(64, 256, 16, 0), "max_steps is 0"),
            (defaults(512, 20, "4.0", "ddim"), "default width 512"),
            (defaults(100, 20, "4.0", "ddim"), "default width 100"),
            (defaults(128, 0, "4.0", "ddim"), "0 steps"),
            (defaults(128, 20, "-1", "ddim"), "guidance_scale is -1"),
            (defaults(128, 20, "4.0", ""), "scheduler is empty"),
        ] {
            let problem = card(&text).expect_err(&text).to_string();
            assert!(problem.contains(reason), "{text}: {problem}");
        }
    }
}
