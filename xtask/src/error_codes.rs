//! Every row of the error table is produced by a test: a code that nothing can make is a promise that nobody keeps.

use crate::tidy::files_below;
use anyhow::Result;
use atelier_protocol::ErrorCode;
use std::path::Path;

/// Codes that nothing can produce yet, each with what it waits for.
const NOT_PRODUCED_YET: &[(ErrorCode, &str)] = &[];

/// Codes that no test names, and exceptions that are none any more.
pub fn unproduced(root: &Path) -> Result<Vec<String>> {
    let tests = tests(root)?;
    let mut problems = Vec::new();
    for row in ErrorCode::ALL {
        let named = names(row.code).iter().any(|name| tests.contains(name.as_str()));
        let waits = NOT_PRODUCED_YET.iter().find(|(code, _)| *code == row.code);
        match (named, waits) {
            (true, None) | (false, Some(_)) => {}
            (false, None) => problems.push(format!(
                "error code `{}`: no test produces it; write one, or list it with what it waits for",
                row.word
            )),
            (true, Some((_, reason))) => problems
                .push(format!("error code `{}`: a test names it now, so `{reason}` is over", row.word)),
        }
    }
    Ok(problems)
}

/// How a test may name a code: in Rust, in Python, and as the word on the wire.
fn names(code: ErrorCode) -> [String; 3] {
    let word = code.word();
    [
        format!("ErrorCode::{code:?}"),
        format!("ErrorCode.{}", word.replace('.', "_").to_uppercase()),
        format!("\"{word}\""),
    ]
}

/// The text of all tests, in both languages.
fn tests(root: &Path) -> Result<String> {
    let mut all = String::new();
    for file in files_below(&root.join("crates"), "rs")? {
        let text = std::fs::read_to_string(&file)?;
        let is_test = file.iter().any(|part| part == "tests" || part == "tests.rs");
        let tests =
            if is_test { Some(&*text) } else { text.split_once("#[cfg(test)]").map(|(_, t)| t) };
        all.push_str(tests.unwrap_or_default());
    }
    for file in files_below(&root.join("worker/tests"), "py")? {
        all.push_str(&std::fs::read_to_string(&file)?);
    }
    Ok(all)
}
