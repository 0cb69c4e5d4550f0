//! Calls go down, events go up: a domain may name only the domains before it.

use atelier_engine::files;
use std::path::{Path, PathBuf};

const ORDER: [&str; 6] = ["device", "memory", "model", "processing", "inference", "postprocessing"];
/// Below all domains, so that they name none of them.
const GROUND: [&str; 2] = ["store", "worker"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in files::read_dir(folder).unwrap() {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

/// Domains that a piece of code names as `crate::x`.
fn named(code: &str) -> Vec<&'static str> {
    let named = |domain: &&'static str| {
        code.match_indices(&format!("crate::{domain}")).any(|(at, found)| {
            !code[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
        })
    };
    ORDER.into_iter().filter(|domain| named(domain)).collect()
}

fn code(path: &Path) -> String {
    let text = files::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn each_domain_names_only_the_domains_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = Vec::new();
    for (place, domain) in ORDER.into_iter().enumerate() {
        for path in sources(&src.join(domain)) {
            for other in named(&code(&path)) {
                if ORDER.iter().position(|d| *d == other) > Some(place) {
                    broken.push(format!("{}: {domain} may not name {other}", path.display()));
                }
            }
        }
    }
    for ground in GROUND {
        for path in sources(&src.join(ground)) {
            for other in named(&code(&path)) {
                broken.push(format!("{}: {ground} may not name {other}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn no_file_of_a_domain_reaches_around_the_order() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = Vec::new();
    for folder in ORDER.into_iter().chain(GROUND) {
        for path in sources(&src.join(folder)) {
            let code = code(&path);
            if code.contains("use crate::{") {
                broken.push(format!("{}: `use crate::{{…}}` hides what it names", path.display()));
            }
            if code.contains("crate::node") {
                broken.push(format!("{}: only the composition root names all", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_engine_knows_neither_http_nor_a_terminal() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = files::read_to_string(&manifest).unwrap();
    for banned in ["axum", "clap", "hyper", "indicatif"] {
        assert!(!manifest.contains(banned), "the engine depends on {banned}");
    }
}
