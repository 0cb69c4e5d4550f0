//! [`Encoder`]: raw pixels and what is known about them become a PNG, JPEG or WebP file.

use super::bundle::{self, Bundle};
use super::exif::Exif;
use super::infotext::{SamplerName, infotext};
use super::{PostprocessingError, jpeg};
use crate::processing::{Encoded, Finisher, PictureFacts, RawImage};
use atelier_protocol::ErrorBody;
use std::fmt;

/// As metadata names this program.
const SOFTWARE: &str = concat!("Atelier ", env!("CARGO_PKG_VERSION"));

const DEFAULT_JPEG_QUALITY: u8 = 90;
/// From here on colour is kept at full resolution.
const FULL_COLOUR_QUALITY: u8 = 90;
const MAX_PNG_SIDE: u32 = i32::MAX.unsigned_abs();
const MAX_JPEG_SIDE: u32 = 65_535;
const MAX_WEBP_SIDE: u32 = 16_384;

/// Encodes pictures, with their parameters inside unless the request says otherwise.
pub struct Encoder {
    sampler_name: Box<dyn Fn(&str) -> SamplerName + Send + Sync>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encoder")
    }
}

/// The two texts that a picture carries.
struct Texts {
    infotext: String,
    bundle_json: String,
}

impl Encoder {
    /// `sampler_name` tells what other tools call a scheduler of ours.
    #[must_use]
    pub fn new(sampler_name: impl Fn(&str) -> SamplerName + Send + Sync + 'static) -> Self {
        Self { sampler_name: Box::new(sampler_name) }
    }

    /// The same as [`Finisher::finish`], with the facts of a failure.
    pub fn encode(
        &self,
        image: RawImage,
        facts: &PictureFacts,
    ) -> Result<Encoded, PostprocessingError> {
        check(&image)?;
        let output = &facts.request.output;
        let texts = output.metadata.then(|| Texts {
            infotext: infotext(facts, &(self.sampler_name)(&facts.request.scheduler), SOFTWARE),
            bundle_json: Bundle::new(facts, SOFTWARE).to_json(),
        });
        match output.format.as_str() {
            "png" => {
                let bytes = to_png(&image, texts.as_ref())?;
                Ok(Encoded { bytes, media_type: "image/png", extension: "png" })
            }
            "jpeg" => {
                let quality = output.quality.unwrap_or(DEFAULT_JPEG_QUALITY);
                let bytes = to_jpeg(image, texts.as_ref(), quality)?;
                Ok(Encoded { bytes, media_type: "image/jpeg", extension: "jpg" })
            }
            "webp" => {
                let bytes = to_webp(&image, texts.as_ref())?;
                Ok(Encoded { bytes, media_type: "image/webp", extension: "webp" })
            }
            other => Err(PostprocessingError::Format { format: other.to_owned() }),
        }
    }
}

impl Finisher for Encoder {
    fn finish(&self, image: RawImage, facts: &PictureFacts) -> Result<Encoded, ErrorBody> {
        self.encode(image, facts).map_err(ErrorBody::from)
    }
}

fn check(image: &RawImage) -> Result<(), PostprocessingError> {
    let RawImage { width, height, channels, .. } = *image;
    if !matches!(channels, 3 | 4) {
        return Err(PostprocessingError::Channels { channels });
    }
    // Two sides of 32 bits fit into 64; the channels may be too much, and then no picture is that large.
    let needed = (u64::from(width) * u64::from(height)).saturating_mul(u64::from(channels));
    let given = image.pixels.len() as u64;
    if needed != given {
        return Err(PostprocessingError::WrongSize { width, height, channels, needed, given });
    }
    Ok(())
}

fn check_sides(
    image: &RawImage,
    format: &'static str,
    limit: u32,
) -> Result<(), PostprocessingError> {
    let RawImage { width, height, .. } = *image;
    if (1..=limit).contains(&width) && (1..=limit).contains(&height) {
        Ok(())
    } else {
        Err(PostprocessingError::Dimensions { format, width, height, limit })
    }
}

fn refused(format: &'static str, error: &dyn fmt::Display) -> PostprocessingError {
    PostprocessingError::Encoder { format, reason: error.to_string() }
}

fn to_png(image: &RawImage, texts: Option<&Texts>) -> Result<Vec<u8>, PostprocessingError> {
    check_sides(image, "png", MAX_PNG_SIDE)?;
    let encode = || -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::with_capacity(image.pixels.len() / 2);
        let mut encoder = png::Encoder::new(&mut bytes, image.width, image.height);
        encoder.set_color(if image.channels == 4 {
            png::ColorType::Rgba
        } else {
            png::ColorType::Rgb
        });
        encoder.set_depth(png::BitDepth::Eight);
        // Ten milliseconds for a megapixel instead of two hundred, for a few per cent of size.
        encoder.set_compression(png::Compression::Fast);
        encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
        if let Some(texts) = texts {
            let keyword = "parameters".to_owned();
            if texts.infotext.chars().all(|c| u32::from(c) < 256) {
                encoder.add_text_chunk(keyword, texts.infotext.clone())?;
            } else {
                encoder.add_itxt_chunk(keyword, texts.infotext.clone())?;
            }
            encoder.add_itxt_chunk(bundle::NAME.to_owned(), texts.bundle_json.clone())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&image.pixels)?;
        writer.finish()?;
        Ok(bytes)
    };
    encode().map_err(|error| refused("png", &error))
}

fn to_jpeg(
    image: RawImage,
    texts: Option<&Texts>,
    quality: u8,
) -> Result<Vec<u8>, PostprocessingError> {
    check_sides(&image, "jpeg", MAX_JPEG_SIDE)?;
    let side =
        |pixels: u32| u16::try_from(pixels).expect("checked against the limit of the format");
    let (width, height) = (side(image.width), side(image.height));
    let pixels = opaque(image)?;
    let encode = || -> Result<Vec<u8>, jpeg_encoder::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, quality.clamp(1, 100));
        encoder.set_sampling_factor(if quality >= FULL_COLOUR_QUALITY {
            jpeg_encoder::SamplingFactor::F_1_1
        } else {
            jpeg_encoder::SamplingFactor::F_2_2
        });
        if let Some(texts) = texts {
            for segment in jpeg::segments(exif(texts), &texts.bundle_json) {
                encoder.add_app_segment(1, segment)?;
            }
        }
        encoder.encode(&pixels, width, height, jpeg_encoder::ColorType::Rgb)?;
        Ok(bytes)
    };
    encode().map_err(|error| refused("jpeg", &error))
}

/// RGB without alpha, if there is nothing to lose.
fn opaque(image: RawImage) -> Result<Vec<u8>, PostprocessingError> {
    if image.channels == 3 {
        return Ok(image.pixels);
    }
    let (pixels, _) = image.pixels.as_chunks::<4>();
    if pixels.iter().any(|&[.., alpha]| alpha != u8::MAX) {
        return Err(PostprocessingError::Transparency);
    }
    Ok(pixels.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect())
}

fn to_webp(image: &RawImage, texts: Option<&Texts>) -> Result<Vec<u8>, PostprocessingError> {
    check_sides(image, "webp", MAX_WEBP_SIDE)?;
    let mut bytes = Vec::new();
    let mut encoder = image_webp::WebPEncoder::new(&mut bytes);
    if let Some(texts) = texts {
        // No limit of 64 KiB here, so both texts are always in the one block.
        let description =
            Some(format!("{}:{}", bundle::NAME, bundle::to_ascii(&texts.bundle_json)));
        encoder.set_exif_metadata(Exif { description, ..exif(texts) }.to_tiff());
    }
    let color = if image.channels == 4 {
        image_webp::ColorType::Rgba8
    } else {
        image_webp::ColorType::Rgb8
    };
    encoder
        .encode(&image.pixels, image.width, image.height, color)
        .map_err(|error| refused("webp", &error))?;
    Ok(bytes)
}

fn exif(texts: &Texts) -> Exif {
    Exif {
        description: None,
        software: Some(SOFTWARE.to_owned()),
        comment: Some(texts.infotext.clone()),
    }
}
