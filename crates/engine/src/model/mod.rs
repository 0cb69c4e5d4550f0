//! Model: the catalogue of what lies on disk.
//!
//! Scans folders, reads headers and configurations (never weights), and says of each model whether
//! it can be used and if not, why. Gives models by id, name, title or hash prefix, and computes a
//! model's identity when somebody asks.
//!
//! Usable today: diffusers folders of the `StableDiffusionPipeline`. Everything else that looks
//! like a model is listed with what it looks like. Pickle files are refused unopened. Folders are
//! read and never written.

mod actor;
mod card;
mod catalog;
mod diffusers;
mod error;
mod handle;
mod hash;
mod loading;
mod looks;
mod numerics;
pub mod safetensors;
mod scan;
mod stable_diffusion;
mod view;
mod vocabulary;

#[cfg(test)]
mod tests;

pub use card::{ModelCard, SchedulerConfig};
pub use error::{ModelError, Problem};
pub use handle::{ModelConfig, ModelHandle};
pub use loading::{Loaded, Loader, Residency};
pub use stable_diffusion::{FAMILY, StableDiffusion};
pub use view::{CatalogView, Component, Format, Model, ScanReport, UnusableModel, WeightFile};
pub use vocabulary::Vocabulary;
