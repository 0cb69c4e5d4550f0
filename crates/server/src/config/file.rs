//! Reads settings from TOML text. Everything that is wrong with it is reported at once, each with its line: an unknown
//! name with the nearest known one, a wrong kind of value with what is possible.

use super::raw::{self, KEYS, Kind, RawConfig, nearest_key};
use super::{Origin, Problem};
use std::collections::BTreeMap;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// A file's settings and the line of each.
#[derive(Debug, Default)]
pub(super) struct FileLayer {
    pub(super) raw: RawConfig,
    pub(super) lines: BTreeMap<String, usize>,
}

pub(super) fn parse(text: &str, path: &Path) -> Result<FileLayer, Vec<Problem>> {
    let problem = |line: Option<usize>, key: &str, message: String| Problem {
        origin: Origin::File { path: path.to_owned(), line },
        key: key.to_owned(),
        message,
    };
    let from_toml = |error: &toml::de::Error| {
        let line = error.span().map(|span| line_of(text, span.start));
        vec![problem(line, "", error.message().trim().replace('\n', ", "))]
    };
    let table = DeTable::parse(text).map_err(|error| from_toml(&error))?;
    let mut found = Found { text, lines: BTreeMap::new(), wrong: Vec::new() };
    found.walk("", table.get_ref());
    if !found.wrong.is_empty() {
        // The parser sorts by name; people read from top to bottom.
        found.wrong.sort_by_key(|(line, ..)| *line);
        let wrong = found.wrong.into_iter();
        return Err(wrong.map(|(line, key, what)| problem(Some(line), &key, what)).collect());
    }
    let raw = toml::from_str(text).map_err(|error| from_toml(&error))?;
    Ok(FileLayer { raw, lines: found.lines })
}

struct Found<'a> {
    text: &'a str,
    lines: BTreeMap<String, usize>,
    /// Line, key and sentence.
    wrong: Vec<(usize, String, String)>,
}

impl Found<'_> {
    fn walk(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let line = line_of(self.text, key.span().start);
            if let Some(known) = raw::find(&name) {
                if let Some(found) = objection(known.kind, value.get_ref()) {
                    let wanted = known.kind.wanted();
                    self.wrong.push((
                        line,
                        name.clone(),
                        format!("`{name}` is {found}, not {wanted}"),
                    ));
                }
                self.lines.insert(name, line);
            } else if is_table(&name) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.walk(&format!("{name}."), inner),
                    other => {
                        let what =
                            format!("`{name}` is {}, not a table of settings", kind_of(other));
                        self.wrong.push((line, name, what));
                    }
                }
            } else {
                let help = nearest_key(&name)
                    .map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"));
                let what = format!("`{name}` is no setting{help}");
                self.wrong.push((line, name, what));
            }
        }
    }
}

/// What a value is instead of what its key wants; none when the kind is right. Ranges are looked at later, when it is
/// known which source wins.
fn objection(kind: Kind, value: &DeValue<'_>) -> Option<String> {
    let fits = match (kind, value) {
        (Kind::Text | Kind::Word(_) | Kind::Path, DeValue::String(_)) => true,
        (Kind::Truth, DeValue::Boolean(_)) => true,
        (Kind::Count { .. }, DeValue::Integer(number)) => {
            if u64::from_str_radix(number.as_str(), number.radix()).is_err() {
                return Some(number.as_str().to_owned()); // negative, or beyond all limits
            }
            true
        }
        (Kind::Paths | Kind::Words, DeValue::Array(items)) => {
            let other = items.iter().find(|item| !matches!(item.get_ref(), DeValue::String(_)));
            if let Some(other) = other {
                return Some(format!("a list with {}", kind_of(other.get_ref())));
            }
            true
        }
        (
            Kind::Text
            | Kind::Word(_)
            | Kind::Path
            | Kind::Paths
            | Kind::Words
            | Kind::Count { .. }
            | Kind::Truth,
            _,
        ) => false,
    };
    (!fits).then(|| kind_of(value).to_owned())
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn is_table(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let problems = parse(text, Path::new("/etc/a.toml")).expect_err("it is wrong");
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn whatever_is_wrong_is_told_with_its_line_and_what_is_possible() {
        let cases: [(&str, &[&str]); 13] = [
            // Names.
            ("lisen = \"x\"", &["1: `lisen` is no setting; did you mean `listen`?"]),
            ("python = \"x\"", &["1: `python` is no setting; did you mean `worker.python`?"]),
            ("telemetry = true", &["1: `telemetry` is no setting"]),
            // Units: the name carries the unit, so a name without it, or with another one, is a wrong name.
            ("max_wait = 5", &["1: `max_wait` is no setting; did you mean `max_wait_s`?"]),
            ("idle_exit_ms = 5", &["1: `idle_exit_ms` is no setting; did you mean `idle_exit_s`?"]),
            (
                "\n\nmax_wait_s = \"10m\"",
                &["3: `max_wait_s` is text, not a whole number of seconds, 1 to 86400"],
            ),
            (
                "max_body_bytes = 8.5",
                &["1: `max_body_bytes` is a number with a fraction, not a whole number of bytes, \
                   1024 to 1073741824"],
            ),
            // Types.
            (
                "queue_limit = -1",
                &["1: `queue_limit` is -1, not a whole number of jobs, 1 to 1000000"],
            ),
            ("warm_start = \"yes\"", &["1: `warm_start` is text, not true or false"]),
            (
                "model_folders = \"/m\"",
                &["1: `model_folders` is text, not a list of paths, each in quotes"],
            ),
            (
                "[worker]\ncommand = [\"python3\", 3]",
                &[
                    "2: `worker.command` is a list with a number, not a list of words, each in quotes",
                ],
            ),
            ("worker = 3", &["1: `worker` is a number, not a table of settings"]),
            // All at once, from top to bottom.
            (
                "queue_limit = \"many\"\nlisen = \"x\"\n\n[log]\nlevle = \"info\"\nlevel = 3",
                &[
                    "1: `queue_limit` is text, not a whole number of jobs, 1 to 1000000",
                    "2: `lisen` is no setting; did you mean `listen`?",
                    "5: `log.levle` is no setting; did you mean `log.level`?",
                    "6: `log.level` is a number, not one of error, warn, info, debug, trace",
                ],
            ),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> =
                expected.iter().map(|what| format!("/etc/a.toml, line {what}")).collect();
            assert_eq!(problems(text), expected, "{text}");
        }
    }

    #[test]
    fn broken_toml_names_its_line() {
        assert!(problems("a = 1\nb = = 2\n")[0].starts_with("/etc/a.toml, line 2: "));
    }

    #[test]
    fn a_dotted_name_is_the_same_as_a_table() {
        let layer = parse("log.level = \"warn\"\n", Path::new("a.toml")).unwrap();
        assert_eq!(layer.raw.log.level.as_deref(), Some("warn"));
        assert_eq!(layer.lines.get("log.level"), Some(&1));
    }
}
