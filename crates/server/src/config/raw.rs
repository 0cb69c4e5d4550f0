//! What was written: every setting optional, names checked, values not yet. Also the one list of their names and limits.

use serde::Deserialize;
use std::path::PathBuf;

/// One setting's names, and what it may hold.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// As in the file, with a dot below a table.
    pub name: &'static str,
    pub variable: &'static str,
    pub flag: Option<&'static str>,
    pub kind: Kind,
}

/// What a setting may hold: the one place for limits, which messages, the reference and the schema repeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Text,
    /// One of these.
    Word(&'static [&'static str]),
    Path,
    Paths,
    Words,
    /// A whole number of a unit, from the first number to the last.
    Count {
        unit: &'static str,
        least: u64,
        most: u64,
    },
    Truth,
}

impl Kind {
    /// What is possible, as a phrase that fits after "not".
    #[must_use]
    pub fn wanted(self) -> String {
        match self {
            Self::Text => "text in quotes".to_owned(),
            Self::Word(words) => format!("one of {}", words.join(", ")),
            Self::Path => "a path in quotes".to_owned(),
            Self::Paths => "a list of paths, each in quotes".to_owned(),
            Self::Words => "a list of words, each in quotes".to_owned(),
            Self::Count { unit, least, most } => {
                format!("a whole number of {unit}, {least} to {most}")
            }
            Self::Truth => "true or false".to_owned(),
        }
    }
}

const fn key(
    name: &'static str,
    variable: &'static str,
    flag: Option<&'static str>,
    kind: Kind,
) -> Key {
    Key { name, variable, flag, kind }
}

const fn count(unit: &'static str, least: u64, most: u64) -> Kind {
    Kind::Count { unit, least, most }
}

const DAY_S: u64 = 24 * 60 * 60;

pub(super) const SPARES: &[&str] = &["auto", "on", "off"];
pub(super) const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];
pub(super) const FORMATS: &[&str] = &["text", "json"];

/// Every setting, in the order of `default-config.toml`.
pub const KEYS: &[Key] = &[
    key("data", "ATELIER_DATA", Some("--data"), Kind::Path),
    key("envs", "ATELIER_ENVS", None, Kind::Path),
    key("listen", "ATELIER_LISTEN", Some("--listen"), Kind::Text),
    key("model_folders", "ATELIER_MODELS", None, Kind::Paths),
    key("default_model", "ATELIER_DEFAULT_MODEL", None, Kind::Text),
    key("pictures", "ATELIER_PICTURES", None, Kind::Path),
    key("queue_limit", "ATELIER_QUEUE_LIMIT", None, count("jobs", 1, 1_000_000)),
    key("max_attempts", "ATELIER_MAX_ATTEMPTS", None, count("attempts", 1, 10)),
    key("max_body_bytes", "ATELIER_MAX_BODY_BYTES", None, count("bytes", 1 << 10, 1 << 30)),
    key("max_wait_s", "ATELIER_MAX_WAIT_S", None, count("seconds", 1, DAY_S)),
    key(
        "idle_exit_s",
        "ATELIER_IDLE_EXIT_S",
        Some("--idle-exit"),
        count("seconds", 0, 365 * DAY_S),
    ),
    key("warm_start", "ATELIER_WARM_START", Some("--no-warm-start"), Kind::Truth),
    key("worker.python", "ATELIER_PYTHON", None, Kind::Path),
    key("worker.command", "ATELIER_WORKER_COMMAND", None, Kind::Words),
    key("worker.spare", "ATELIER_WORKER_SPARE", None, Kind::Word(SPARES)),
    key(
        "worker.recycle_growth_mib",
        "ATELIER_WORKER_RECYCLE_GROWTH_MIB",
        None,
        count("MiB", 0, 1 << 20),
    ),
    key("log.level", "ATELIER_LOG_LEVEL", None, Kind::Word(LEVELS)),
    key("log.format", "ATELIER_LOG_FORMAT", None, Kind::Word(FORMATS)),
];

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Settings as one source wrote them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub data: Option<PathBuf>,
    pub envs: Option<PathBuf>,
    pub listen: Option<String>,
    pub model_folders: Option<Vec<PathBuf>>,
    pub default_model: Option<String>,
    pub pictures: Option<PathBuf>,
    pub queue_limit: Option<u64>,
    pub max_attempts: Option<u64>,
    pub max_body_bytes: Option<u64>,
    pub max_wait_s: Option<u64>,
    pub idle_exit_s: Option<u64>,
    pub warm_start: Option<bool>,
    #[serde(default)]
    pub worker: RawWorker,
    #[serde(default)]
    pub log: RawLog,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RawWorker {
    pub python: Option<PathBuf>,
    pub command: Option<Vec<String>>,
    pub spare: Option<String>,
    pub recycle_growth_mib: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RawLog {
    pub level: Option<String>,
    pub format: Option<String>,
}

impl RawConfig {
    /// Sets one value from text. `name` is one of [`KEYS`].
    pub(super) fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        let wanted = find(name).map(|key| key.kind.wanted()).unwrap_or_default();
        let wrong = |_| format!("`{text}` is not {wanted}");
        let number = |text: &str| text.trim().parse().map(Some).map_err(wrong);
        match name {
            "data" => self.data = Some(text.into()),
            "envs" => self.envs = Some(text.into()),
            "listen" => self.listen = Some(text.into()),
            "model_folders" => {
                let folders = text.split(':').filter(|part| !part.is_empty());
                self.model_folders = Some(folders.map(PathBuf::from).collect());
            }
            "default_model" => self.default_model = Some(text.into()),
            "pictures" => self.pictures = Some(text.into()),
            "queue_limit" => self.queue_limit = number(text)?,
            "max_attempts" => self.max_attempts = number(text)?,
            "max_body_bytes" => self.max_body_bytes = number(text)?,
            "max_wait_s" => self.max_wait_s = number(text)?,
            "idle_exit_s" => self.idle_exit_s = number(text)?,
            "warm_start" => {
                self.warm_start = Some(match text {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(format!("`{text}` is not {wanted}")),
                });
            }
            "worker.python" => self.worker.python = Some(text.into()),
            "worker.command" => self.worker.command = Some(words(text)?),
            "worker.spare" => self.worker.spare = Some(text.into()),
            "worker.recycle_growth_mib" => self.worker.recycle_growth_mib = number(text)?,
            "log.level" => self.log.level = Some(text.into()),
            "log.format" => self.log.format = Some(text.into()),
            _ => return Err(format!("`{name}` is no setting")),
        }
        Ok(())
    }
}

/// A command from text: a JSON list, or words between spaces.
fn words(text: &str) -> Result<Vec<String>, String> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|error| format!("is no list of words: {error}"));
    }
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// The setting whose name is closest to a wrong one, if any is close.
pub(super) fn nearest_key(wrong: &str) -> Option<&'static str> {
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    KEYS.iter()
        .map(|key| {
            // `python` outside of `[worker]` is as likely as a misspelt `worker.python`.
            let whole = strsim::osa_distance(wrong, key.name);
            (whole.min(strsim::osa_distance(&last(wrong), &last(key.name))), key.name)
        })
        .filter(|(distance, name)| *distance <= allowed(name))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The variable that a name of ours was probably meant to be; none for a known or a foreign name.
pub(super) fn nearest_variable(name: &str) -> Option<&'static str> {
    use super::environment::{CONFIG_VARIABLE, NODE_VARIABLE};
    let known = || KEYS.iter().map(|key| key.variable).chain([CONFIG_VARIABLE, NODE_VARIABLE]);
    if !name.starts_with("ATELIER_") || known().any(|variable| variable == name) {
        return None;
    }
    known()
        .map(|variable| (strsim::osa_distance(name, variable), variable))
        .filter(|(distance, _)| *distance <= 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, variable)| variable)
}

fn allowed(name: &str) -> usize {
    (name.len() / 3).clamp(1, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_can_be_set_from_text() {
        for key in KEYS {
            let text = if key.name == "warm_start" { "true" } else { "1" };
            RawConfig::default().set(key.name, text).unwrap();
        }
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        assert_eq!(nearest_key("lisen"), Some("listen"));
        assert_eq!(nearest_key("python"), Some("worker.python"));
        assert_eq!(nearest_key("log.levle"), Some("log.level"));
        assert_eq!(nearest_key("telemetry_endpoint"), None);
    }
}
