//! The hand-written lines in `contract/vectors`, which `worker/tests/test_vectors.py` reads as well.
#![expect(clippy::disallowed_methods, reason = "the wrapper for files belongs to the engine")]

use atelier_protocol::worker::{
    EXIT_BAD_LINES, EXIT_VERSION_MISMATCH, FromWorker, MAX_BAD_LINES, MAX_LINE_BYTES, PROTOCOL,
    ToWorker,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Either direction, as the first part of a file's name says.
#[derive(PartialEq, Debug)]
enum Message {
    ToWorker(ToWorker),
    FromWorker(FromWorker),
}

impl Message {
    fn decode(file: &Path, line: &[u8]) -> serde_json::Result<Self> {
        let name = file.file_name().unwrap().to_str().unwrap();
        match name.split('.').next() {
            Some("to_worker") => serde_json::from_slice(line).map(Self::ToWorker),
            Some("from_worker") => serde_json::from_slice(line).map(Self::FromWorker),
            _ => panic!("{name} does not begin with who sends it"),
        }
    }
    fn encode(&self) -> Value {
        match self {
            Self::ToWorker(message) => serde_json::to_value(message),
            Self::FromWorker(message) => serde_json::to_value(message),
        }
        .unwrap()
    }
}

/// Every variant by its word on the wire. A new one stops the build here: it wants a vector, too.
fn word(message: &Message) -> &'static str {
    match message {
        Message::ToWorker(message) => match message {
            ToWorker::Welcome { .. } => "welcome",
            ToWorker::ProbeDevices { .. } => "probe_devices",
            ToWorker::Load { .. } => "load",
            ToWorker::Unload { .. } => "unload",
            ToWorker::Measure { .. } => "measure",
            ToWorker::Run { .. } => "run",
            ToWorker::Cancel { .. } => "cancel",
            ToWorker::Shutdown {} => "shutdown",
        },
        Message::FromWorker(message) => match message {
            FromWorker::Hello { .. } => "hello",
            FromWorker::Ready { .. } => "ready",
            FromWorker::Devices { .. } => "devices",
            FromWorker::Loaded { .. } => "loaded",
            FromWorker::Unloaded { .. } => "unloaded",
            FromWorker::Measured { .. } => "measured",
            FromWorker::Started { .. } => "started",
            FromWorker::Progress { .. } => "progress",
            FromWorker::Image { .. } => "image",
            FromWorker::Done { .. } => "done",
            FromWorker::Failed { .. } => "failed",
            FromWorker::Usage { .. } => "usage",
            FromWorker::Bye {} => "bye",
        },
    }
}

const WORDS: [&str; 21] = [
    "bye",
    "cancel",
    "devices",
    "done",
    "failed",
    "hello",
    "image",
    "load",
    "loaded",
    "measure",
    "measured",
    "probe_devices",
    "progress",
    "ready",
    "run",
    "shutdown",
    "started",
    "unload",
    "unloaded",
    "usage",
    "welcome",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contract/vectors").join(name)
}

/// Every line of every file in a folder, with a place to name when it fails.
fn lines(name: &str) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let bytes = fs::read(&file).unwrap();
        let text = bytes.strip_suffix(b"\n").expect("a file of lines ends with a newline");
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let place = format!("{}:{}", file.display(), index + 1);
            all.push((file.clone(), place, line.to_vec()));
        }
    }
    assert!(!all.is_empty(), "no vectors in {name}");
    all
}

fn is_loose(file: &Path) -> bool {
    file.to_string_lossy().ends_with(".loose.ndjson")
}

#[test]
fn every_valid_line_comes_back_as_the_same_json() {
    for (file, place, line) in lines("valid") {
        let message = Message::decode(&file, &line).unwrap_or_else(|e| panic!("{place}: {e}"));
        let again = message.encode();
        if is_loose(&file) {
            let bytes = serde_json::to_vec(&again).unwrap();
            assert_eq!(Message::decode(&file, &bytes).unwrap(), message, "{place}");
        } else {
            assert_eq!(again, serde_json::from_slice::<Value>(&line).unwrap(), "{place}");
        }
    }
}

#[test]
fn every_invalid_line_is_refused() {
    for (file, place, line) in lines("invalid") {
        if let Ok(message) = Message::decode(&file, &line) {
            panic!("{place} was accepted as {message:?}");
        }
    }
}

/// A change of the wire shows as a difference in one of these files.
#[test]
fn every_message_looks_as_it_did() {
    let mut by_word: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (file, _, line) in lines("valid") {
        if !is_loose(&file) {
            let message = Message::decode(&file, &line).unwrap();
            by_word.entry(word(&message)).or_default().push(message.encode());
        }
    }
    assert_eq!(by_word.keys().copied().collect::<Vec<_>>(), WORDS, "each message has a vector");
    for (word, messages) in by_word {
        let text: Vec<String> =
            messages.iter().map(|m| serde_json::to_string_pretty(m).unwrap()).collect();
        insta::assert_snapshot!(word, text.join("\n"));
    }
}

#[test]
fn the_limits_are_those_that_both_languages_read() {
    let limits: Value = serde_json::from_slice(&fs::read(folder("limits.json")).unwrap()).unwrap();
    assert_eq!(
        limits,
        json!({
            "protocol": PROTOCOL,
            "line_bytes": MAX_LINE_BYTES,
            "bad_lines": MAX_BAD_LINES,
            "exit_version_mismatch": EXIT_VERSION_MISMATCH,
            "exit_bad_lines": EXIT_BAD_LINES,
        })
    );
}
