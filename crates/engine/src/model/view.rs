//! What others may read: models as plain values, and the published snapshot of the catalogue.

use super::safetensors::{Tensor, TensorType};
use super::{FAMILY, ModelCard, Problem, StableDiffusion};
use atelier_protocol::http::{ModelComponent, ModelEntry};
use atelier_protocol::worker::Dtype;
use atelier_protocol::{Bytes, ErrorBody};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// A model that can be used.
#[derive(Clone, PartialEq, Debug)]
pub struct Model {
    /// Unique in the catalogue; stable while no other model of the same name comes.
    pub id: String,
    pub title: String,
    /// Absolute.
    pub folder: PathBuf,
    pub format: Format,
    /// `stable_diffusion`.
    pub family: &'static str,
    pub components: Vec<Component>,
    /// Of the weight files that are used.
    pub bytes: Bytes,
    pub parameters: u64,
    /// When it came here: seconds since 1970 of the folder's newest description.
    pub created: i64,
    pub card: ModelCard,
    pub facts: StableDiffusion,
}

/// Something that looks like a model and cannot be used.
#[derive(Clone, PartialEq, Debug)]
pub struct UnusableModel {
    pub id: String,
    pub title: String,
    /// The folder or file, absolute.
    pub path: PathBuf,
    pub format: Format,
    pub bytes: Bytes,
    pub created: i64,
    pub problem: Problem,
}

/// How a model lies on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A folder with `model_index.json`.
    DiffusersFolder,
    /// A folder with `config.json` and weights: one part of a pipeline.
    ComponentFolder,
    /// One file.
    Safetensors,
    Pickle,
}

impl Format {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::DiffusersFolder => "diffusers_folder",
            Self::ComponentFolder => "component_folder",
            Self::Safetensors => "safetensors",
            Self::Pickle => "pickle",
        }
    }
}

/// A part of a model that has weights.
#[derive(Clone, PartialEq, Debug)]
pub struct Component {
    /// `unet`, `vae`, `text_encoder`.
    pub name: String,
    pub class: String,
    /// More than one where the weights are split.
    pub files: Vec<WeightFile>,
}

/// One file of weights as it was when its header was read.
#[derive(Clone, PartialEq, Debug)]
pub struct WeightFile {
    pub path: PathBuf,
    pub stamp: FileStamp,
    pub tensors: Arc<[Tensor]>,
}

/// Tells whether a file is still the one that was looked at.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileStamp {
    pub path: PathBuf,
    pub bytes: u64,
    pub modified_ns: i128,
    pub inode: u64,
}

impl Component {
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.files.iter().flat_map(|file| file.tensors.iter())
    }
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes(self.tensors().map(Tensor::bytes).sum())
    }
    /// Trained numbers; what counts positions and the like is left out.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors().filter(|t| !is_index(t.dtype)).map(Tensor::elements).sum()
    }
    #[must_use]
    pub fn dtypes(&self) -> Vec<TensorType> {
        self.tensors().map(|t| t.dtype).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Old text encoders carry a list of positions as whole numbers.
fn is_index(dtype: TensorType) -> bool {
    matches!(dtype, TensorType::I64 | TensorType::I32)
}

impl Model {
    /// Bytes of all weights once they are held as `dtype`.
    #[must_use]
    pub fn weights_bytes(&self, dtype: Dtype) -> Bytes {
        Bytes(self.parameters.saturating_mul(dtype.bytes()))
    }

    /// Bytes beside the weights that a run needs at its fullest moment; see
    /// [`StableDiffusion::peak_bytes`].
    #[must_use]
    pub fn peak_bytes(&self, width: u32, height: u32, batch: u32, dtype: Dtype) -> Bytes {
        self.facts.peak_bytes(width, height, batch, dtype)
    }

    /// This model as clients see it. Its hash, where it is loaded and whether it is the default are
    /// known elsewhere.
    #[must_use]
    pub fn entry(
        &self,
        blake3: Option<String>,
        resident_on: Vec<String>,
        default: bool,
    ) -> ModelEntry {
        let component = |component: &Component| ModelComponent {
            name: component.name.clone(),
            class: component.class.clone(),
            bytes: component.bytes().0,
            parameters: component.parameters(),
            dtypes: component.dtypes().into_iter().map(|t| t.word().to_lowercase()).collect(),
        };
        ModelEntry {
            id: self.id.clone(),
            object: "model".to_owned(),
            created: self.created,
            owned_by: "local".to_owned(),
            title: self.title.clone(),
            format: self.format.word().to_owned(),
            family: self.family.to_owned(),
            usable: true,
            problem: None,
            license: self.card.license.clone(),
            bytes: self.bytes.0,
            parameters: self.parameters,
            blake3,
            components: self.components.iter().map(component).collect(),
            limits: Some(self.card.limits),
            defaults: Some(self.card.defaults.clone()),
            resident_on,
            default,
        }
    }
}

impl UnusableModel {
    /// This model as clients see it.
    #[must_use]
    pub fn entry(&self) -> ModelEntry {
        ModelEntry {
            id: self.id.clone(),
            object: "model".to_owned(),
            created: self.created,
            owned_by: "local".to_owned(),
            title: self.title.clone(),
            format: self.format.word().to_owned(),
            family: match self.problem {
                // A diffusers folder of our family with something broken in it is still of our
                // family.
                Problem::Missing { .. }
                | Problem::Unreadable { .. }
                | Problem::Header { .. }
                | Problem::Mismatch { .. }
                | Problem::Card { .. }
                    if self.format == Format::DiffusersFolder =>
                {
                    FAMILY
                }
                Problem::Missing { .. }
                | Problem::Unreadable { .. }
                | Problem::Header { .. }
                | Problem::Mismatch { .. }
                | Problem::Card { .. }
                | Problem::Pickle { .. }
                | Problem::Unsupported { .. } => "unknown",
            }
            .to_owned(),
            usable: false,
            problem: Some(ErrorBody::from(self.problem.clone())),
            license: None,
            bytes: self.bytes.0,
            parameters: 0,
            blake3: None,
            components: Vec::new(),
            limits: None,
            defaults: None,
            resident_on: Vec::new(),
            default: false,
        }
    }
}

/// The latest published state.
#[derive(Clone, Debug, Default)]
pub struct CatalogView {
    /// Zero before the first scan; grows with every scan.
    pub generation: u64,
    /// RFC 3339, UTC; absent before the first scan.
    pub scanned_at: Option<String>,
    /// Sorted by id.
    pub models: Arc<[Arc<Model>]>,
    /// Sorted by id; ids are unique over both lists.
    pub unusable: Arc<[Arc<UnusableModel>]>,
}

/// What a scan found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ScanReport {
    /// Ids.
    pub usable: Vec<String>,
    /// Ids with the reason.
    pub unusable: Vec<(String, Problem)>,
    /// Files that are no models: pictures, texts, …
    pub ignored: u64,
    /// Folders that could not be looked at, loops, and the like, one sentence each.
    pub findings: Vec<String>,
}
