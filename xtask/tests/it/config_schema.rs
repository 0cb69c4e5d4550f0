//! The schema of the settings says what the program does: the default file and a file with every setting pass both, and
//! whatever one refuses the other refuses too.

use atelier_server::config::{DEFAULT_CONFIG, Flags, KEYS, RawConfig, load};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use xtask::codegen::config::schema;

const SAMPLE: &str = include_str!("every-setting.toml");

/// What a value breaks of a schema. Knows the words that ours uses and stops at any other, so that none is overlooked.
fn refusals(schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (word, wanted) in schema.as_object().expect("a schema is an object") {
        let holds = match word.as_str() {
            "$schema" | "title" | "description" | "default" | "format" => true,
            "type" => match wanted.as_str().expect("one type") {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64() || value.is_u64(),
                other => panic!("type {other}"),
            },
            "enum" => wanted.as_array().expect("a list").contains(value),
            "minimum" => value.as_f64() >= wanted.as_f64(),
            "maximum" => value.as_f64() <= wanted.as_f64(),
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    found.extend(refusals(wanted, item, &format!("{place}[]")));
                }
                true
            }
            "properties" => {
                for (name, inner) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = wanted.get(name) {
                        found.extend(refusals(schema, inner, &format!("{place}.{name}")));
                    }
                }
                true
            }
            "additionalProperties" => {
                assert_eq!(*wanted, Value::Bool(false));
                let known = schema["properties"].as_object().expect("properties");
                value
                    .as_object()
                    .is_none_or(|value| value.keys().all(|key| known.contains_key(key)))
            }
            other => panic!("the schema uses `{other}`, which this test does not know"),
        };
        if !holds {
            found.push(format!("{place}: {word}"));
        }
    }
    found
}

fn json(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

/// The names of all settings in a table, with a dot below a table.
fn names(value: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, value) in value.as_object().unwrap() {
        match value.as_object() {
            Some(inner) => names.extend(inner.keys().map(|inner| format!("{name}.{inner}"))),
            None => drop(names.insert(name.clone())),
        }
    }
    names
}

fn accepted(text: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    std::fs::write(&file, text).unwrap();
    let flags = Flags { config: Some(file), ..Flags::default() };
    load(&flags, &BTreeMap::from([("HOME", "/home/ada")])).is_ok()
}

#[test]
fn the_default_file_and_a_file_with_every_setting_are_as_the_schema_says() {
    let schema = schema().unwrap();
    for text in [DEFAULT_CONFIG, SAMPLE] {
        assert_eq!(refusals(&schema, &json(text), "file"), Vec::<String>::new());
        toml::from_str::<RawConfig>(text).unwrap();
        assert!(accepted(text));
    }
}

#[test]
fn keys_schema_default_file_and_sample_name_the_same_settings() {
    let keys: BTreeSet<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    let schema = schema().unwrap();
    let mut in_schema = BTreeSet::new();
    for (name, property) in schema["properties"].as_object().unwrap() {
        match property["properties"].as_object() {
            Some(inner) => in_schema.extend(inner.keys().map(|inner| format!("{name}.{inner}"))),
            None => drop(in_schema.insert(name.clone())),
        }
    }
    let (defaults, sample) = (json(DEFAULT_CONFIG), json(SAMPLE));
    assert_eq!(in_schema, keys);
    assert_eq!(names(&defaults), keys);
    assert_eq!(names(&sample), keys);
    let at =
        |value: &Value, name: &str| value.pointer(&format!("/{}", name.replace('.', "/"))).cloned();
    for key in &keys {
        assert_ne!(at(&sample, key), at(&defaults, key), "{key} is not set to anything of its own");
    }
}

#[test]
fn what_the_schema_refuses_the_program_refuses_too() {
    let schema = schema().unwrap();
    for bad in [
        "lisen = \"127.0.0.1:1\"",
        "listen = 4280",
        "model_folders = \"/m\"",
        "model_folders = [3]",
        "queue_limit = 0",
        "queue_limit = \"many\"",
        "max_attempts = 11",
        "max_body_bytes = 1.5",
        "max_wait_s = -1",
        "idle_exit_s = 31536001",
        "warm_start = 1",
        "worker = 3",
        "worker.pyton = \"x\"",
        "log.level = \"loud\"",
        "[log]\nformat = true",
    ] {
        assert_ne!(refusals(&schema, &json(bad), "file"), Vec::<String>::new(), "{bad}");
        assert!(!accepted(bad), "{bad}");
    }
}
