//! The worker's Python source, as this binary was built with: laid out on disk under its own hash, so that binaries of
//! different versions that share a folder never see each other's files.

use super::make_folder;
use crate::files;
use include_dir::{Dir, include_dir};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

static EMBEDDED: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../../worker/src");

#[derive(Clone, Debug)]
pub(super) struct Source {
    /// By path relative to the folder that goes into `PYTHONPATH`.
    files: BTreeMap<PathBuf, &'static [u8]>,
    name: String,
}

impl Source {
    pub(super) fn embedded() -> Self {
        fn collect(dir: &Dir<'static>, files: &mut BTreeMap<PathBuf, &'static [u8]>) {
            for file in dir.files() {
                files.insert(file.path().to_path_buf(), file.contents());
            }
            for dir in dir.dirs() {
                collect(dir, files);
            }
        }
        let mut files = BTreeMap::new();
        collect(&EMBEDDED, &mut files);
        Self::new(files)
    }
    /// Bytecode that a test run left in the source tree is no part of the source.
    fn new(mut files: BTreeMap<PathBuf, &'static [u8]>) -> Self {
        files.retain(|path, _| !path.iter().any(|part| part == "__pycache__"));
        let mut hasher = blake3::Hasher::new();
        for (path, bytes) in &files {
            for part in [path.as_os_str().as_encoded_bytes(), bytes] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
        }
        let name = format!("source-{}", &hasher.finalize().to_hex()[..16]);
        Self { files, name }
    }
    pub(super) fn folder(&self, envs: &Path) -> PathBuf {
        envs.join(&self.name)
    }
    /// The folder, if the source lies under `envs` already, whole.
    pub(super) fn laid_out(&self, envs: &Path) -> Option<PathBuf> {
        Some(self.folder(envs)).filter(|folder| self.is_whole(folder))
    }
    /// Makes sure that the source lies under `envs`, whole, and returns its folder.
    pub(super) fn lay_out(&self, envs: &Path) -> io::Result<PathBuf> {
        let folder = self.folder(envs);
        if self.is_whole(&folder) {
            return Ok(folder);
        }
        make_folder(envs)?;
        let unique = uuid::Uuid::now_v7().simple();
        let part = envs.join(format!(".part-{}-{unique}", self.name));
        for (path, bytes) in &self.files {
            let path = part.join(path);
            files::create_dir_all(path.parent().unwrap_or(&part))?;
            files::write_atomic(&path, bytes)?;
        }
        if files::rename(&part, &folder).is_err() {
            // Something is in the way: a damaged copy, or a whole one by another process a moment ago.
            if !self.is_whole(&folder) {
                let damaged = envs.join(format!(".part-damaged-{unique}"));
                files::rename(&folder, &damaged)?;
                files::rename(&part, &folder)?;
                files::remove_dir_all(&damaged)?;
            } else {
                files::remove_dir_all(&part)?;
            }
        }
        files::sync_dir(envs)?;
        Ok(folder)
    }
    fn is_whole(&self, folder: &Path) -> bool {
        self.files.iter().all(|(path, bytes)| {
            files::read(&folder.join(path)).is_ok_and(|on_disk| on_disk == *bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(files: &[(&str, &'static str)]) -> Source {
        Source::new(files.iter().map(|(path, text)| (path.into(), text.as_bytes())).collect())
    }

    /// `include_dir!` does not see new files by itself; `build.rs` watches the known ones.
    #[test]
    fn the_embedded_source_is_the_one_in_the_tree() {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for path in files::read_dir(folder).unwrap() {
                match (path.is_dir(), path.ends_with("__pycache__")) {
                    (true, false) => walk(&path, found),
                    (true, true) => {}
                    (false, _) => found.push(path),
                }
            }
        }
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../worker/src");
        let mut found = Vec::new();
        walk(&tree, &mut found);
        let embedded = Source::embedded();
        assert_eq!(embedded.files.len(), found.len(), "touch crates/engine/build.rs and try again");
        assert!(embedded.is_whole(&tree), "touch crates/engine/build.rs and try again");
        assert!(embedded.files.contains_key(Path::new("atelier_worker/__init__.py")));
    }

    #[test]
    fn bytecode_changes_neither_the_name_nor_what_is_laid_out() {
        let clean = source(&[("w/__init__.py", "a = 1")]);
        let used =
            source(&[("w/__init__.py", "a = 1"), ("w/__pycache__/__init__.cpython-311.pyc", "x")]);
        assert_eq!(clean.name, used.name);
        assert_ne!(clean.name, source(&[("w/__init__.py", "a = 2")]).name);
        assert_eq!(used.files.len(), 1);
    }

    #[test]
    fn a_damaged_copy_is_replaced_and_nothing_is_left_over() {
        let envs = tempfile::tempdir().unwrap();
        let source = source(&[("w/__init__.py", ""), ("w/deep/loop.py", "pass")]);
        let folder = source.lay_out(envs.path()).unwrap();
        assert_eq!(files::read_to_string(&folder.join("w/deep/loop.py")).unwrap(), "pass");
        files::write_atomic(&folder.join("w/deep/loop.py"), b"half").unwrap();
        assert_eq!(source.lay_out(envs.path()).unwrap(), folder);
        assert_eq!(files::read_to_string(&folder.join("w/deep/loop.py")).unwrap(), "pass");
        assert_eq!(files::read_dir(envs.path()).unwrap(), [folder]);
    }
}
