//! `atelier config show`: every setting with its meaning, its value and where the value was written.

use super::{DEFAULT_CONFIG, Row, Settings};
use serde_json::{Value, json};
use std::fmt::Write as _;

impl Settings {
    /// As TOML that could be used as a file, each value with its origin behind it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            for line in comment(row.key) {
                let _ = writeln!(text, "{line}"); // writing to a String cannot fail
            }
            // A JSON string, list, number or truth value is written the same way in TOML.
            let _ = writeln!(text, "{} = {}  # {}\n", row.key, row.value, row.origin);
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "key": row.key,
                "value": row.value,
                "origin": row.origin.word(),
                "place": row.origin.to_string(),
                "meaning": meaning(row.key),
            })
        };
        json!({
            "object": "list",
            "data": self.rows.iter().map(row).collect::<Vec<_>>(),
            "file": self.file.as_ref().map(|path| path.to_string_lossy()),
        })
    }
}

/// What a setting means, as the embedded file says it, in one line.
#[must_use]
pub fn meaning(key: &str) -> String {
    let lines = comment(key).into_iter().map(|line| line.trim_start_matches(['#', ' ']));
    lines.collect::<Vec<_>>().join(" ")
}

/// The comment above a key in the embedded file.
fn comment(key: &str) -> Vec<&'static str> {
    let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
    let (mut within, mut comment) = ("", Vec::new());
    for line in DEFAULT_CONFIG.lines() {
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            within = header;
            comment.clear();
        } else if line.starts_with('#') {
            comment.push(line);
        } else if line.is_empty() {
            comment.clear();
        } else if within == table && line.split(" =").next() == Some(name) {
            return comment;
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::super::{Flags, KEYS, load};
    use super::*;
    use atelier_engine::files;
    use std::collections::BTreeMap;

    #[test]
    fn every_key_has_a_meaning_in_the_embedded_file() {
        for key in KEYS {
            assert!(!meaning(key.name).is_empty(), "{} has no comment", key.name);
        }
    }

    #[test]
    fn what_is_shown_reads_back_as_a_settings_file() {
        let env = BTreeMap::from([("HOME", "/home/ada"), ("ATELIER_DATA", "/srv/a \"b\"")]);
        let shown = load(&Flags::default(), &env).unwrap().to_text();
        assert!(shown.contains("data = \"/srv/a \\\"b\\\"\"  # environment variable ATELIER_DATA"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shown.toml");
        files::write_atomic(&file, shown.as_bytes()).unwrap();
        let flags = Flags { config: Some(file), ..Flags::default() };
        let again = load(&flags, &BTreeMap::from([("HOME", "/home/ada")])).unwrap();
        assert_eq!(again.config.data, std::path::Path::new("/srv/a \"b\""));
    }
}
