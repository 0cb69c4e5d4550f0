//! `GET /v1/models`, shared with clients of the OpenAI API.

use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelEntry {
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// Seconds since 1970, as OpenAI clients expect.
    pub created: i64,
    pub owned_by: String,
    pub title: String,
    /// `diffusers_folder`.
    pub format: String,
    /// `stable_diffusion`.
    pub family: String,
    pub usable: bool,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<crate::ErrorBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    pub bytes: u64,
    pub parameters: u64,
    /// Hash over names, shapes, types and bytes of all tensors; absent until computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    pub components: Vec<ModelComponent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ModelLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defaults: Option<ModelDefaults>,
    /// Devices on which it is loaded now.
    pub resident_on: Vec<String>,
    /// Whether requests without a model use this one.
    pub default: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelComponent {
    pub name: String,
    pub class: String,
    pub bytes: u64,
    pub parameters: u64,
    pub dtypes: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ModelLimits {
    pub min_size: u32,
    pub max_size: u32,
    /// Width and height are multiples of this.
    pub multiple_of: u32,
    pub max_steps: u32,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ModelDefaults {
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    pub guidance_scale: f64,
    pub scheduler: String,
}
