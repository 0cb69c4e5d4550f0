//! The JSON bundle inside a picture: everything that is needed to draw it again, in our own words.

use crate::processing::PictureFacts;
use atelier_protocol::http::ResolvedRequest;
use atelier_protocol::worker::Numerics;
use atelier_protocol::{DeviceId, JobId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the bundle wherever one is needed: PNG keyword, EXIF prefix, JPEG segment.
pub(super) const NAME: &str = "atelier";
/// Of the bundle's shape. A reader that meets a higher one reports none rather than half of it.
const VERSION: u32 = 1;

/// Readers ignore fields that they do not know.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Bundle {
    pub version: u32,
    /// `Atelier 0.1.0`.
    pub software: String,
    /// As resolved, without the caller's labels.
    pub request: ResolvedRequest,
    pub picture: Picture,
    pub model: BundleModel,
    pub device: DeviceId,
    pub numerics: Numerics,
    /// Versions that change pixels.
    pub versions: BTreeMap<String, String>,
    pub noise_source: String,
    pub batch: Batch,
    /// RFC 3339, UTC.
    pub created_at: String,
    pub job: JobId,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Picture {
    pub index: u32,
    pub seed: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BundleModel {
    pub id: String,
    pub title: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// The batch that the picture was computed in: size and place change pixels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Batch {
    pub size: u32,
    pub slot: u32,
}

impl Bundle {
    pub(super) fn new(facts: &PictureFacts, software: &str) -> Self {
        let request = ResolvedRequest {
            labels: BTreeMap::new(), // the caller's own, and perhaps private
            ..facts.request.clone()
        };
        Self {
            version: VERSION,
            software: software.to_owned(),
            picture: Picture { index: facts.index, seed: facts.seed },
            model: BundleModel {
                id: request.model.clone(),
                title: facts.model_title.clone(),
                blake3: facts.model_blake3.clone(),
            },
            device: facts.device.clone(),
            numerics: facts.numerics.clone(),
            versions: facts.versions.clone(),
            noise_source: request.noise_source.clone(),
            batch: Batch { size: facts.batch_size, slot: facts.batch_slot },
            created_at: facts.created_at.clone(),
            job: facts.job,
            request,
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("our types have string keys and no failing parts")
    }

    /// Nothing unless it is a bundle of a version that we know.
    pub(super) fn from_json(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().filter(|bundle: &Self| bundle.version == VERSION)
    }
}

/// The same JSON in ASCII. Outside ASCII, JSON has characters only inside strings, where an escape may stand for them.
pub(super) fn to_ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::to_ascii;

    #[test]
    fn ascii_json_says_the_same() {
        let text = "\"Äpfel 🍎 \\\" \\u0000\"";
        let ascii = to_ascii(text);
        assert!(ascii.is_ascii());
        let read = |json: &str| serde_json::from_str::<String>(json).unwrap();
        assert_eq!(read(&ascii), read(text));
    }
}
