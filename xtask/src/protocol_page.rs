//! `docs/reference/protocol.md`: the generated half with every message and its examples, and the rule that the
//! hand-written half speaks of each.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

pub const FILE: &str = "docs/reference/protocol.md";
pub const REGION: &str = "messages";

/// Schema, heading, and the file of vectors.
const HALVES: [(&str, &str, &str); 2] = [
    ("to_worker", "To the worker", "contract/vectors/valid/to_worker.ndjson"),
    ("from_worker", "From the worker", "contract/vectors/valid/from_worker.ndjson"),
];

/// Messages that the hand-written half does not speak of. `schema` is that of `contract/worker.schema.json`.
#[must_use]
pub fn unexplained(page: &str, schema: &Value) -> Vec<String> {
    let by_hand = page.split(&format!("<!-- {REGION}:start -->")).next().unwrap_or_default();
    let words = HALVES.iter().flat_map(|(half, ..)| variants(&schema[half])).map(|(word, _)| word);
    words
        .filter(|word| !by_hand.contains(&format!("`{word}`")))
        .map(|word| {
            format!("{FILE}: the hand-written half does not say what the message `{word}` is for")
        })
        .collect()
}

/// Each message by its word, in the order of the Rust enum.
fn variants(schema: &Value) -> Vec<(String, &Value)> {
    let variants = schema["oneOf"].as_array().map(Vec::as_slice).unwrap_or_default();
    variants
        .iter()
        .filter_map(|variant| {
            Some((variant["properties"]["type"]["const"].as_str()?.to_owned(), variant))
        })
        .collect()
}

/// The generated half.
pub fn generated(root: &Path, schema: &Value) -> Result<String> {
    let mut text = String::new();
    let mut parts: BTreeMap<&str, &Value> = BTreeMap::new();
    for (half, title, vectors) in HALVES {
        write!(text, "\n## {title}\n")?;
        let examples = std::fs::read_to_string(root.join(vectors))
            .with_context(|| format!("read {vectors}"))?;
        for (word, variant) in variants(&schema[half]) {
            write!(text, "\n### `{word}`\n\n{}\n", description(variant))?;
            fields(&mut text, variant, "type")?;
            text.push_str("\n```json\n");
            let begins = format!("\"type\":\"{word}\"");
            for line in examples.lines().filter(|line| line.contains(&begins)) {
                writeln!(text, "{line}")?;
            }
            text.push_str("```\n");
        }
        let definitions = schema[half]["$defs"].as_object();
        parts.extend(definitions.into_iter().flatten().map(|(name, part)| (name.as_str(), part)));
    }
    text.push_str("\n## Parts of messages\n");
    for (name, part) in parts {
        if name == "ErrorCode" {
            continue; // a page of its own
        }
        write!(text, "\n### {name}\n")?;
        let (about, is_plain) =
            (description(part), part["type"] == "string" && part.get("enum").is_none());
        let form = if is_plain { format!("Written as {}.", kind(part)?) } else { String::new() };
        let sentences = [about, form].into_iter().filter(|text| !text.is_empty());
        let sentences = sentences.collect::<Vec<_>>().join(" ");
        if !sentences.is_empty() {
            write!(text, "\n{sentences}\n")?;
        }
        for choice in part["oneOf"].as_array().into_iter().flatten().chain([part]) {
            choices(&mut text, choice).with_context(|| {
                format!("{name} has a form that this page cannot show: {choice}")
            })?;
        }
        fields(&mut text, part, "")?;
    }
    Ok(text)
}

/// Words that stand for themselves, or a tagged form with its fields. The part itself is neither when it has other forms.
fn choices(text: &mut String, choice: &Value) -> Result<()> {
    if let Some(words) = choice["enum"].as_array() {
        let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
        write!(text, "\n- `{}`\n", words.join("`\n- `"))?;
    } else if let Some(word) =
        choice["properties"]["step"]["const"].as_str().or(choice["const"].as_str())
    {
        let about = description(choice);
        write!(text, "\n- `{word}`{}{about}\n", if about.is_empty() { "" } else { ": " })?;
        fields(text, choice, "step")?;
    } else if choice.get("oneOf").is_none()
        && choice.get("properties").is_none()
        && choice["type"] != "string"
    {
        anyhow::bail!("neither words nor fields");
    }
    Ok(())
}

fn description(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A table of the fields but the tag; nothing without any.
fn fields(text: &mut String, schema: &Value, tag: &str) -> Result<()> {
    let Some(properties) = schema["properties"].as_object() else { return Ok(()) };
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().collect();
    let mut rows = properties.iter().filter(|(name, _)| *name != tag).peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    text.push_str("\n| field | type | |\n|---|---|---|\n");
    for (name, field) in rows {
        let optional = !required.contains(&&Value::from(name.as_str()));
        let absent = if optional { "May be absent. " } else { "" };
        let about = format!("{absent}{}", description(field));
        writeln!(text, "| `{name}` | {} | {} |", kind(field)?, about.trim())?;
    }
    Ok(())
}

/// A type in words. What it does not know stops the generator: a page that is silent about a field helps nobody.
fn kind(schema: &Value) -> Result<String> {
    if *schema == Value::Bool(true) {
        return Ok("any JSON".to_owned());
    }
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return Ok(match name {
            "ErrorCode" => "[error code](errors.md)".to_owned(),
            _ => format!("[{name}](#{})", name.to_lowercase()),
        });
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let real: Vec<_> = choices.iter().filter(|c| c["type"] != "null").collect();
        if let [only] = real.as_slice() {
            return kind(only);
        }
    }
    let types = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(many) => {
            many.iter().filter_map(Value::as_str).filter(|t| *t != "null").collect()
        }
        _ => Vec::new(),
    };
    Ok(match (types.as_slice(), schema["format"].as_str()) {
        (["string"], Some("uuid")) => "UUID".to_owned(),
        (["string"], _) => "text".to_owned(),
        (["integer"], Some("uint32")) => "whole number below 2^32".to_owned(),
        (["integer"], _) => "whole number".to_owned(),
        (["number"], _) => "number".to_owned(),
        (["array"], _) => format!("list of {}", kind(&schema["items"])?),
        (["object"], _) if schema.get("additionalProperties").is_some() => {
            format!("object: text to {}", kind(&schema["additionalProperties"])?)
        }
        _ => anyhow::bail!("a field has a form that this page cannot show: {schema}"),
    })
}
