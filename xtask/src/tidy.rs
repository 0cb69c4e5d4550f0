//! Documents rot; this fails when a path that they name is gone or a module does not say what it is for.

use crate::steps::root;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

pub(crate) fn run() -> Result<()> {
    let root = root();
    let mut problems = Vec::new();
    for document in documents(&root)? {
        paths_exist(&root, &document, &mut problems)?;
    }
    for source in files_below(&root.join("crates"), "rs")? {
        let text = std::fs::read_to_string(&source)?;
        let in_src = source.components().any(|part| part.as_os_str() == "src");
        if in_src && !text.trim_start().starts_with("//!") {
            let name = source.strip_prefix(&root)?.display();
            problems
                .push(format!("{name}: the first line should say what the module owns (`//! …`)"));
        }
    }
    if problems.is_empty() {
        println!("tidy: documents and modules agree with the tree");
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}

fn documents(root: &Path) -> Result<Vec<PathBuf>> {
    let mut documents = files_below(&root.join("docs"), "md")?;
    for folder in ["worker", "bench", "models"] {
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

fn files_below(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
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
