//! Reads settings from TOML text. Every unknown name is reported at once, with its line and the nearest known name.

use super::raw::{KEYS, RawConfig, nearest_key};
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
    let mut found = Found { text, lines: BTreeMap::new(), unknown: Vec::new() };
    found.walk("", table.get_ref());
    if !found.unknown.is_empty() {
        let unknown = found.unknown.iter().map(|(name, line)| {
            let help = nearest_key(name)
                .map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"));
            problem(Some(*line), name, format!("`{name}` is no setting{help}"))
        });
        return Err(unknown.collect());
    }
    let raw = toml::from_str(text).map_err(|error| from_toml(&error))?;
    Ok(FileLayer { raw, lines: found.lines })
}

struct Found<'a> {
    text: &'a str,
    lines: BTreeMap<String, usize>,
    unknown: Vec<(String, usize)>,
}

impl Found<'_> {
    fn walk(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let line = line_of(self.text, key.span().start);
            if KEYS.iter().any(|known| known.name == name) {
                self.lines.insert(name, line);
            } else if is_table(&name) {
                // A table's name with another kind of value is left to the typed reading.
                if let DeValue::Table(inner) = value.get_ref() {
                    self.walk(&format!("{name}."), inner);
                }
            } else {
                self.unknown.push((name, line));
            }
        }
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
    fn every_unknown_name_is_reported_with_its_line_and_the_nearest_known_one() {
        let found = problems("queue_limit = 3\nlisen = \"x\"\n\n[log]\nlevle = \"info\"\n");
        assert_eq!(
            found,
            [
                "/etc/a.toml, line 2: `lisen` is no setting; did you mean `listen`?",
                "/etc/a.toml, line 5: `log.levle` is no setting; did you mean `log.level`?",
            ]
        );
    }

    #[test]
    fn a_wrong_type_names_its_line() {
        let found = problems("\nqueue_limit = \"many\"\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("/etc/a.toml, line 2: invalid type"), "{found:?}");
        assert!(problems("worker = 3\n")[0].starts_with("/etc/a.toml, line 1: "));
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
