//! Reads the parameters out of a picture, ours or somebody else's.
//!
//! Files come from anywhere, so nothing here trusts one: every offset is checked, texts are limited, and a damaged file
//! has no parameters rather than an error. Pixels are not decoded.

use super::bundle::{self, Bundle};
use super::exif::Exif;
use super::jpeg;
use std::io::Cursor;

/// What a picture says about itself. At least one of the two is there.
#[derive(Clone, PartialEq, Debug)]
pub struct Parameters {
    /// A1111's text.
    pub infotext: Option<String>,
    /// Only in pictures of ours.
    pub bundle: Option<Bundle>,
}

/// Longest text that is unpacked from a PNG, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// What reading a PNG may allocate in all.
const MAX_PNG_BYTES: usize = 16 << 20;

/// The parameters in a PNG, JPEG or WebP file.
#[must_use]
pub fn read_parameters(file: &[u8]) -> Option<Parameters> {
    let parameters = if file.starts_with(b"\x89PNG\r\n\x1a\n") {
        from_png(file)?
    } else if file.starts_with(b"\xff\xd8") {
        let (exif, bundle) = jpeg::read(file);
        let from_exif = from_exif(exif);
        Parameters { bundle: from_exif.bundle.or(bundle), ..from_exif }
    } else if file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP") {
        from_exif(Exif::from_tiff(webp_chunk(file, b"EXIF")?))
    } else {
        return None;
    };
    (parameters.infotext.is_some() || parameters.bundle.is_some()).then_some(parameters)
}

fn from_exif(exif: Exif) -> Parameters {
    let bundle = exif
        .description
        .and_then(|text| Some(text.strip_prefix(bundle::NAME)?.strip_prefix(':')?.to_owned()))
        .and_then(|json| Bundle::from_json(json.as_bytes()));
    Parameters { infotext: exif.comment.filter(|text| !text.is_empty()), bundle }
}

fn from_png(file: &[u8]) -> Option<Parameters> {
    let limits = png::Limits { bytes: MAX_PNG_BYTES };
    let mut reader = png::Decoder::new_with_limits(Cursor::new(file), limits).read_info().ok()?;
    let mut infotext = png_text(reader.info(), "parameters");
    let mut bundle = png_text(reader.info(), bundle::NAME);
    if infotext.is_none() && bundle.is_none() && reader.finish().is_ok() {
        // Some writers put their texts behind the pixels.
        infotext = png_text(reader.info(), "parameters");
        bundle = png_text(reader.info(), bundle::NAME);
    }
    let bundle = bundle.and_then(|json| Bundle::from_json(json.as_bytes()));
    Some(Parameters { infotext, bundle })
}

fn png_text(info: &png::Info<'_>, keyword: &str) -> Option<String> {
    let latin = || {
        let chunk = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword)?;
        Some(chunk.text.clone())
    };
    let utf8 = || {
        let mut chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword)?.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
        chunk.get_text().ok()
    };
    let packed = || {
        let mut chunk =
            info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword)?.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
        chunk.get_text().ok()
    };
    latin().or_else(utf8).or_else(packed)
}

/// Content of the first chunk of this kind in a RIFF file.
fn webp_chunk<'f>(file: &'f [u8], wanted: &[u8; 4]) -> Option<&'f [u8]> {
    let mut rest = file.get(12..)?;
    loop {
        let (kind, length) = (rest.get(..4)?, rest.get(4..8)?.try_into().ok()?);
        let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
        let content = rest.get(8..)?.get(..length)?;
        if kind == wanted {
            return Some(content);
        }
        // Chunks begin at even places.
        rest = rest.get(8 + length + length % 2..)?;
    }
}
