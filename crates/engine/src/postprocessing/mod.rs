//! Postprocessing: what happens to a picture after it was drawn. For now that is encoding, with the parameters inside.
//!
//! Pure functions over bytes. It never touches the disk, never talks to a worker and never reads the clock; and nothing
//! that it writes into a picture tells of paths, hosts, users or the caller's labels.
//!
//! What a picture carries, unless its request says `metadata: false`:
//!
//! | | A1111's text | the bundle (JSON, everything that is needed to draw it again) |
//! |---|---|---|
//! | PNG | `tEXt` `parameters`; `iTXt` where Latin-1 does not suffice | `iTXt` `atelier` |
//! | WebP | EXIF `UserComment` | EXIF `ImageDescription`, `atelier:` + ASCII JSON |
//! | JPEG | the same, as far as 64 KiB allow | the same, else in `APP1` segments of our own |
//!
//! An EXIF block in a JPEG is one segment of at most 64 KiB; two prompts of 10,000 characters may need more. What does
//! not fit leaves in a fixed order: first the bundle moves into segments of its own, so it is never lost; then, if the
//! text is still too long by itself, the text is left out, since it repeats what the bundle says.

mod bundle;
mod encoder;
mod error;
mod exif;
mod infotext;
mod jpeg;
mod read;
#[cfg(test)]
mod tests;

pub use bundle::{Batch, Bundle, BundleModel, Picture};
pub use encoder::Encoder;
pub use error::PostprocessingError;
pub use infotext::SamplerName;
pub use read::{Parameters, read_parameters};
