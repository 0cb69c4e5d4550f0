//! From JSON to the fields of a request, collecting every problem instead of stopping at the first.

use atelier_protocol::Detail;
use serde_json::{Map, Value};

/// Names that clients of other programs use, and ours.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("cfg_scale", "guidance_scale"),
    ("cfg", "guidance_scale"),
    ("guidance", "guidance_scale"),
    ("num_inference_steps", "steps"),
    ("sampling_steps", "steps"),
    ("n", "count"),
    ("n_iter", "count"),
    ("batch_size", "count"),
    ("num_images", "count"),
    ("num_images_per_prompt", "count"),
    ("sampler_name", "scheduler"),
    ("sampler", "scheduler"),
    ("sampler_index", "scheduler"),
    ("negative", "negative_prompt"),
    ("text", "prompt"),
    ("checkpoint", "model"),
    ("ckpt", "model"),
    ("model_id", "model"),
    ("type", "kind"),
    ("format", "output.format"),
    ("quality", "output.quality"),
    ("output_format", "output.format"),
    ("size", "width` and `height"),
];

/// Reads the fields of one JSON object; whatever is wrong is kept with its path.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a str,
    known: Vec<&'static str>,
    problems: Vec<Detail>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>, path: &'a str) -> Self {
        Self { object, path, known: Vec::new(), problems: Vec::new() }
    }

    fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A field that may be absent; null counts as absent.
    fn take<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        self.known.push(name);
        let value = self.object.get(name).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            let message = format!("must be {expected}, not {}", describe(value));
            self.problems.push(Detail::new(self.field(name), message));
        }
        read
    }

    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.take(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn whole(&mut self, name: &'static str) -> Option<u64> {
        self.take(name, "a whole number that is not negative", Value::as_u64)
    }

    /// A seed: a number, or a decimal string for what JavaScript cannot count.
    pub(super) fn seed(&mut self, name: &'static str) -> Option<u64> {
        self.take(name, "a whole number that is not negative", |value| {
            value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()))
        })
    }

    pub(super) fn number(&mut self, name: &'static str) -> Option<f64> {
        self.take(name, "a number", Value::as_f64)
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Option<bool> {
        self.take(name, "true or false", Value::as_bool)
    }

    pub(super) fn object(&mut self, name: &'static str) -> Option<&'a Map<String, Value>> {
        self.known.push(name);
        let value = self.object.get(name).filter(|value| !value.is_null())?;
        if !value.is_object() {
            let message = format!("must be an object, not {}", describe(value));
            self.problems.push(Detail::new(self.field(name), message));
        }
        value.as_object()
    }

    /// Every problem found, and one for each field that was never asked for.
    pub(super) fn finish(mut self) -> Vec<Detail> {
        for name in self.object.keys().filter(|name| !self.known.contains(&name.as_str())) {
            let message = match self.nearest(name) {
                Some(right) => format!("unknown field; did you mean `{right}`?"),
                None => format!("unknown field; known are {}", self.known.join(", ")),
            };
            self.problems.push(Detail::new(self.field(name), message));
        }
        self.problems
    }

    fn nearest(&self, name: &str) -> Option<&'static str> {
        let other = OTHER_NAMES.iter().find(|(theirs, _)| *theirs == name);
        if let (Some((_, ours)), true) = (other, self.path.is_empty()) {
            return Some(ours);
        }
        let close =
            |known: &&&'static str| strsim::normalized_damerau_levenshtein(known, name) > 0.7;
        self.known.iter().find(close).copied()
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_problem_is_reported_with_the_right_name_where_it_is_known() {
        let body = json!({"steps": "many", "cfg_scale": 7, "heigth": 3, "zzz": 1, "width": -4});
        let mut fields = Fields::new(body.as_object().unwrap(), "");
        for name in ["steps", "width", "height"] {
            fields.whole(name);
        }
        fields.number("guidance_scale");
        let problems = fields.finish();
        let found: Vec<_> =
            problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
        assert_eq!(
            found,
            [
                "steps: must be a whole number that is not negative, not a string",
                "width: must be a whole number that is not negative, not -4",
                "cfg_scale: unknown field; did you mean `guidance_scale`?",
                "heigth: unknown field; did you mean `height`?",
                "zzz: unknown field; known are steps, width, height, guidance_scale",
            ]
        );
    }
}
