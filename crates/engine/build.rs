//! Rebuilds the engine when the worker's Python source changes: the macro that embeds it is not told by itself.
#![expect(clippy::disallowed_methods, reason = "a build script cannot use the crate it builds")]

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    watch(Path::new("../../worker/src"));
}

/// Watches each file rather than the folders: folders also change when Python writes its bytecode.
fn watch(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            watch(&path);
        } else if !path.components().any(|part| part.as_os_str() == "__pycache__") {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
}
