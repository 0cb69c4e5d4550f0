//! Documents rot; this fails when what they say of the tree is not true any more, when a module does not say what it is
//! for, and when the table of operations, the protocol's page or the tests have fallen behind the program.

use crate::operations::{self, Program};
use crate::{error_codes, protocol_page};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

pub fn run(root: &Path) -> Result<()> {
    let mut problems = paths_in_documents(root)?;
    problems.extend(modules_without_a_word(root)?);
    problems.extend(operations::problems(root, &Program::built())?);
    problems.extend(error_codes::unproduced(root)?);
    problems.extend(messages_without_a_word(root)?);
    if problems.is_empty() {
        println!("tidy: documents, modules, operations and error codes agree with the tree");
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}

/// Paths that documents name and that are gone.
pub fn paths_in_documents(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for document in documents(root)? {
        paths_exist(root, &document, &mut problems)?;
    }
    Ok(problems)
}

/// Source files that do not begin with what they own.
pub fn modules_without_a_word(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let sources =
        [files_below(&root.join("crates"), "rs")?, files_below(&root.join("xtask"), "rs")?];
    for source in sources.concat() {
        let text = std::fs::read_to_string(&source)?;
        let in_src = source.components().any(|part| part.as_os_str() == "src");
        if in_src && !text.trim_start().starts_with("//!") {
            let name = source.strip_prefix(root)?.display();
            problems
                .push(format!("{name}: the first line should say what the module owns (`//! …`)"));
        }
    }
    Ok(problems)
}

/// Messages of the worker protocol that its page does not explain.
pub fn messages_without_a_word(root: &Path) -> Result<Vec<String>> {
    let read = |name: &str| {
        std::fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"))
    };
    let schema = serde_json::from_str(&read("contract/worker.schema.json")?)?;
    Ok(protocol_page::unexplained(&read(protocol_page::FILE)?, &schema))
}

fn documents(root: &Path) -> Result<Vec<PathBuf>> {
    let mut documents = Vec::new();
    for folder in ["docs", "worker", "bench", "models", "contract"] {
        documents.extend(files_below(&root.join(folder), "md")?);
    }
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            documents.push(path);
        }
    }
    documents.sort();
    Ok(documents)
}

pub(crate) fn files_below(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Top-level names that make a word in backticks a path of this tree.
const TOPS: [&str; 9] =
    ["crates/", "xtask/", "worker/", "contract/", "models/", "docs/", "bench/", ".ci/", ".cargo/"];

fn paths_exist(root: &Path, document: &Path, problems: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(document)?;
    let name = document.strip_prefix(root)?.display().to_string();
    for (number, line) in (1..).zip(text.lines()) {
        let quoted = line.split('`').skip(1).step_by(2).map(str::to_owned);
        let linked = line.split("](").skip(1).filter_map(|rest| {
            let target = rest.split([')', '#']).next()?;
            let here = document.parent()?.join(target);
            let is_path = !target.is_empty() && !target.contains("://");
            is_path.then(|| {
                here.strip_prefix(root).map_or(target.to_owned(), |p| p.display().to_string())
            })
        });
        for path in quoted.filter(|word| is_path(word)).chain(linked) {
            if !root.join(&path).exists() {
                problems.push(format!("{name}:{number}: `{path}` does not exist"));
            }
        }
    }
    Ok(())
}

fn is_path(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    TOPS.iter().any(|top| word.starts_with(top)) && word.chars().all(plain)
}
