//! Walks folders and finds what looks like a model. Opens nothing but folders.

use crate::files;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Folders within folders; deeper ones are named in a finding.
const MAX_DEPTH: usize = 8;
/// Entries in all; somebody may have named the root of a disk.
const MAX_ENTRIES: u64 = 200_000;
const PICKLES: [&str; 4] = ["ckpt", "pt", "pth", "bin"];

/// Something that may be a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Candidate {
    /// Holds `model_index.json`.
    Pipeline(PathBuf),
    /// Holds `config.json` and safetensors files.
    Component(PathBuf),
    Safetensors(PathBuf),
    Pickle(PathBuf),
}

#[derive(Default, Debug)]
pub(super) struct Found {
    pub(super) candidates: Vec<Candidate>,
    pub(super) ignored: u64,
    pub(super) findings: Vec<String>,
}

/// Looks through these folders, in this order. A folder that does not exist is a finding.
pub(super) fn walk(folders: &[PathBuf]) -> Found {
    let mut walk = Walk::default();
    for folder in folders {
        walk.folder(folder, 0, &mut Vec::new());
    }
    if walk.entries > MAX_ENTRIES {
        let finding =
            format!("more than {MAX_ENTRIES} files were found; the rest was not looked at");
        walk.found.findings.push(finding);
    }
    walk.found
}

#[derive(Default)]
struct Walk {
    found: Found,
    /// Real paths: two names for one model are one model.
    seen: HashSet<PathBuf>,
    entries: u64,
}

impl Walk {
    fn folder(&mut self, folder: &Path, depth: usize, above: &mut Vec<PathBuf>) {
        let listed = folder.canonicalize().and_then(|real| Ok((files::read_dir(folder)?, real)));
        let (entries, real) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                self.found.findings.push(format!("{}: {error}", folder.display()));
                return;
            }
        };
        if above.contains(&real) {
            let finding = format!("{} leads back to {}", folder.display(), real.display());
            self.found.findings.push(finding);
            return;
        }
        if !self.seen.insert(real.clone()) {
            return;
        }
        let has = |name: &str| entries.iter().any(|e| e.file_name() == Some(OsStr::new(name)));
        let has_safetensors = || entries.iter().any(|entry| extension(entry) == "safetensors");
        if has("model_index.json") {
            self.found.candidates.push(Candidate::Pipeline(folder.to_owned()));
            return;
        }
        if has("config.json") && has_safetensors() {
            self.found.candidates.push(Candidate::Component(folder.to_owned()));
            return;
        }
        if depth >= MAX_DEPTH {
            let finding = format!("{} is nested too deeply", folder.display());
            self.found.findings.push(finding);
            return;
        }
        above.push(real);
        for entry in entries {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                break;
            }
            self.entry(&entry, depth, above);
        }
        above.pop();
    }

    fn entry(&mut self, path: &Path, depth: usize, above: &mut Vec<PathBuf>) {
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            return;
        }
        let metadata = match files::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => {
                // Mostly a link whose target is gone.
                self.found.findings.push(error.to_string());
                return;
            }
        };
        if metadata.is_dir() {
            return self.folder(path, depth + 1, above);
        }
        let extension = extension(path);
        let candidate = match extension.as_str() {
            _ if !metadata.is_file() => None,
            "safetensors" => Some(Candidate::Safetensors(path.to_owned())),
            pickle if PICKLES.contains(&pickle) => Some(Candidate::Pickle(path.to_owned())),
            _ => None,
        };
        match candidate {
            None => self.found.ignored += 1,
            Some(candidate) => {
                // Kept under the name that the user gave it, which may be a link with a better name
                // than its target.
                if path.canonicalize().is_ok_and(|real| self.seen.insert(real)) {
                    self.found.candidates.push(candidate);
                }
            }
        }
    }
}

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree(names: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            let path = root.path().join(name);
            files::create_dir_all(path.parent().unwrap()).unwrap();
            files::write_atomic(&path, b"").unwrap();
        }
        root
    }

    fn names(root: &Path, found: &Found) -> Vec<String> {
        let name = |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
        found
            .candidates
            .iter()
            .map(|candidate| match candidate {
                Candidate::Pipeline(path) => format!("pipeline {}", name(path)),
                Candidate::Component(path) => format!("component {}", name(path)),
                Candidate::Safetensors(path) => format!("file {}", name(path)),
                Candidate::Pickle(path) => format!("pickle {}", name(path)),
            })
            .collect()
    }

    #[test]
    fn models_are_found_in_whatever_folders_people_have() {
        let root = tree(&[
            "checkpoints/a.safetensors",
            "checkpoints/preview.png",
            "checkpoints/old.CKPT",
            "diffusers/b/model_index.json",
            "diffusers/b/unet/config.json",
            "diffusers/b/unet/x.safetensors",
            "controlnet/c/config.json",
            "controlnet/c/diffusion_pytorch_model.safetensors",
            ".cache/d.safetensors",
            "README.md",
        ]);
        let found = walk(&[root.path().to_owned()]);
        let expected = [
            "file checkpoints/a.safetensors",
            "pickle checkpoints/old.CKPT",
            "component controlnet/c",
            "pipeline diffusers/b",
        ];
        assert_eq!(names(root.path(), &found), expected);
        assert_eq!((found.ignored, found.findings.len()), (2, 0));
    }

    #[test]
    fn links_are_followed_loops_are_named_and_nothing_comes_twice() {
        let outside = tree(&["m/model_index.json"]);
        let root = tree(&["real/x.safetensors"]);
        symlink(outside.path().join("m"), root.path().join("linked")).unwrap();
        symlink(root.path(), root.path().join("real/loop")).unwrap();
        symlink(root.path().join("real"), root.path().join("same")).unwrap();
        symlink(root.path().join("gone"), root.path().join("dangling")).unwrap();
        let found = walk(&[root.path().to_owned(), root.path().join("real")]);
        assert_eq!(names(root.path(), &found), ["pipeline linked", "file real/x.safetensors"]);
        assert_eq!(found.findings.len(), 2, "{:?}", found.findings);
        assert!(found.findings[0].contains("dangling"), "{:?}", found.findings);
        assert!(found.findings[1].contains("leads back to"), "{:?}", found.findings);
    }

    #[test]
    fn depth_is_limited_and_a_missing_folder_is_a_finding() {
        let root = tree(&["1/2/3/4/5/6/7/8/9/deep.safetensors", "1/2/3/4/5/6/7/near.safetensors"]);
        let found = walk(&[root.path().to_owned(), root.path().join("missing")]);
        assert_eq!(names(root.path(), &found), ["file 1/2/3/4/5/6/7/near.safetensors"]);
        assert_eq!(found.findings.len(), 2);
        assert!(found.findings[0].contains("nested too deeply"));
        assert!(found.findings[1].contains("missing"));
    }
}
