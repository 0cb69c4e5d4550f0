//! A model's identity: BLAKE3 over the names, types, shapes and bytes of its tensors.
//!
//! Independent of how the weights are split into files, of the order inside them and of their
//! metadata, so that a copy that somebody saved again is recognised. Tensors are taken in the order
//! of their names, components in the order of theirs. Remembered while the files stay as they were.

use super::view::{FileStamp, WeightFile};
use super::{Component, Model, Problem};
use crate::files;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;

const CHUNK_BYTES: usize = 1 << 20;

/// Hashes computed in this run of the node. Two who ask for the same one wait for one computation.
#[derive(Clone, Debug, Default)]
pub(super) struct Hashes(Arc<Mutex<Remembered>>);

/// By the state of all files of a model.
type Remembered = HashMap<Vec<FileStamp>, Arc<OnceCell<String>>>;

impl Hashes {
    fn cells(&self) -> MutexGuard<'_, Remembered> {
        // A map of finished values is whole whatever happened to somebody who held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hash, if somebody asked for it before.
    pub(super) fn known(&self, model: &Model) -> Option<String> {
        self.cells().get(&stamps(model)).and_then(|cell| cell.get().cloned())
    }

    /// The hash, computed off the async threads if need be.
    pub(super) async fn of(&self, model: &Model) -> Result<String, Problem> {
        let cell = Arc::clone(self.cells().entry(stamps(model)).or_default());
        let compute = || async {
            let components = model.components.clone();
            tokio::task::spawn_blocking(move || hash(&components)).await.unwrap_or_else(|error| {
                Err(Problem::Unreadable { file: "weights".to_owned(), reason: error.to_string() })
            })
        };
        cell.get_or_try_init(compute).await.cloned()
    }
}

fn stamps(model: &Model) -> Vec<FileStamp> {
    model.components.iter().flat_map(|c| &c.files).map(|file| file.stamp.clone()).collect()
}

fn hash(components: &[Component]) -> Result<String, Problem> {
    let mut sorted: Vec<&Component> = components.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut model = blake3::Hasher::new();
    for component in sorted {
        write_text(&mut model, &component.name);
        model.update(hash_component(component)?.as_bytes());
    }
    Ok(model.finalize().to_hex().to_string())
}

fn hash_component(component: &Component) -> Result<blake3::Hash, Problem> {
    let mut tensors = Vec::new();
    for weights in &component.files {
        let file = Arc::new(open_unchanged(weights)?);
        tensors.extend(weights.tensors.iter().map(|tensor| (tensor, weights, Arc::clone(&file))));
    }
    tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    for (tensor, weights, file) in tensors {
        // Lengths come before everything of variable length, so that no two models write the same
        // bytes.
        write_text(&mut hasher, &tensor.name);
        write_text(&mut hasher, tensor.dtype.word());
        hasher.update(&(tensor.shape.len() as u64).to_le_bytes());
        for side in &tensor.shape {
            hasher.update(&side.to_le_bytes());
        }
        hasher.update(&tensor.bytes().to_le_bytes());
        let mut at = tensor.begin;
        while at < tensor.end {
            let wanted = usize::try_from(tensor.end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let part = &mut chunk[..wanted];
            file.read_exact_at(part, at).map_err(|error| fail(weights, error.to_string()))?;
            hasher.update(part);
            at += wanted as u64;
        }
    }
    Ok(hasher.finalize())
}

fn write_text(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}

/// Places of tensors come from the header as it was; another file under the same name would be read
/// at random.
fn open_unchanged(weights: &WeightFile) -> Result<File, Problem> {
    let now = FileStamp::of(&weights.path).map_err(|error| fail(weights, error.to_string()))?;
    if now != weights.stamp {
        return Err(fail(weights, "it changed since the folders were scanned".to_owned()));
    }
    files::open(&weights.path).map_err(|error| fail(weights, error.to_string()))
}

fn fail(weights: &WeightFile, reason: String) -> Problem {
    let file = weights.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Problem::Unreadable { file, reason }
}
