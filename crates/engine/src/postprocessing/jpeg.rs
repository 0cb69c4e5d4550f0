//! Segments of a JPEG file: where our texts go, and how they are found again.

use super::bundle::{self, Bundle};
use super::exif::Exif;

/// What a segment holds at most, after its two bytes of length.
pub(super) const SEGMENT_BYTES: usize = 65_533;
const EXIF_PREFIX: &[u8] = b"Exif\0\0";
/// Prefix of segments that hold a bundle in parts: then one byte for the part from 1, one for the number of parts, and
/// JSON in UTF-8. Only used where the bundle does not fit into EXIF.
const PARTS_PREFIX: &[u8] = b"Atelier\0";
const PART_BYTES: usize = SEGMENT_BYTES - PARTS_PREFIX.len() - 2;

/// Contents of the `APP1` segments for these texts.
pub(super) fn segments(exif: Exif, bundle_json: &str) -> Vec<Vec<u8>> {
    let description = format!("{}:{}", bundle::NAME, bundle::to_ascii(bundle_json));
    let whole = exif_segment(&Exif { description: Some(description), ..exif.clone() });
    if whole.len() <= SEGMENT_BYTES {
        return vec![whole];
    }
    let mut first = exif_segment(&exif);
    if first.len() > SEGMENT_BYTES {
        first = exif_segment(&Exif { comment: None, ..exif });
    }
    let mut segments = vec![first];
    let parts: Vec<&[u8]> = bundle_json.as_bytes().chunks(PART_BYTES).collect();
    // 255 parts are 16 MiB; requests are limited to a fraction of one.
    if let Ok(count) = u8::try_from(parts.len()) {
        segments.extend(parts.iter().zip(1..=count).map(|(part, number)| {
            let mut segment = PARTS_PREFIX.to_vec();
            segment.extend([number, count]);
            segment.extend(*part);
            segment
        }));
    }
    segments
}

fn exif_segment(exif: &Exif) -> Vec<u8> {
    let mut segment = EXIF_PREFIX.to_vec();
    segment.extend(exif.to_tiff());
    segment
}

/// The texts of a JPEG file, however damaged the file is.
pub(super) fn read(jpeg: &[u8]) -> (Exif, Option<Bundle>) {
    let mut exif = Exif::default();
    let mut parts: Vec<&[u8]> = Vec::new();
    for segment in app1_segments(jpeg) {
        if segment.starts_with(EXIF_PREFIX) {
            if exif == Exif::default() {
                exif = Exif::from_tiff(segment);
            }
        } else if let Some([number, _count, part @ ..]) = segment.strip_prefix(PARTS_PREFIX) {
            // In order or not at all: we write them so, and nobody else writes them.
            if usize::from(*number) == parts.len() + 1 {
                parts.push(part);
            }
        }
    }
    let bundle = Bundle::from_json(&parts.concat());
    (exif, bundle)
}

/// Contents of all `APP1` segments before the picture itself.
fn app1_segments(jpeg: &[u8]) -> Vec<&[u8]> {
    const START_OF_SCAN: u8 = 0xda;
    const APP1: u8 = 0xe1;
    let mut found = Vec::new();
    let mut rest = jpeg.get(2..).unwrap_or_default();
    while let [0xff, marker, high, low, ..] = *rest {
        if marker == START_OF_SCAN {
            break;
        }
        if marker == 0xff {
            rest = &rest[1..]; // filling, allowed before any marker
            continue;
        }
        // The length counts its own two bytes.
        let end = 2 + usize::from(u16::from_be_bytes([high, low]));
        let Some(content) = rest.get(4..end) else { break };
        if marker == APP1 {
            found.push(content);
        }
        rest = &rest[end..];
    }
    found
}
