//! Bodies of the HTTP API, one file a domain. Requests refuse unknown fields; clients ignore unknown fields in answers.
//!
//! These structs are separate from the engine's own types and converted by hand, so that an inner type never becomes a
//! promise to the outside because somebody serialised it.

mod device;
mod inference;
mod memory;
mod model;
mod node;
mod processing;

pub use device::*;
pub use inference::*;
pub use memory::*;
pub use model::*;
pub use node::*;
pub use processing::*;

use serde::{Deserialize, Serialize};

/// Every list answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct List<T> {
    /// Always `list`.
    pub object: String,
    pub data: Vec<T>,
    /// Cursor of the next page, or null.
    pub next: Option<String>,
}

impl<T> List<T> {
    #[must_use]
    pub fn new(data: Vec<T>, next: Option<String>) -> Self {
        Self { object: "list".to_owned(), data, next }
    }
}

/// Every error answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorEnvelope {
    pub error: crate::ErrorBody,
}
