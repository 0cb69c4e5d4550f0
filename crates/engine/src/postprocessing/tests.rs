//! What goes in comes out: pixels where the format is lossless, texts always.

use super::*;
use crate::processing::{Encoded, Finisher, PictureFacts, RawImage};
use atelier_protocol::http::{ResolvedOutput, ResolvedRequest};
use atelier_protocol::worker::{Dtype, MemoryFormat, Numerics};
use atelier_protocol::{DeviceId, ErrorCode, JobId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Cursor;

const FORMATS: [&str; 3] = ["png", "jpeg", "webp"];

/// How files begin that deserve a second look.
const MAGIC: [&[u8]; 5] = [
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8",
    b"\xff\xd8\xff\xe1\0\x40Exif\0\0MM\0*",
    b"\xff\xd8\xff\xe1\0\x40Atelier\0\x01\x01",
    b"RIFF\0\0\0\0WEBPEXIF",
];

fn encoder() -> Encoder {
    Encoder::new(|scheduler| match scheduler {
        "dpmpp_2m" => {
            SamplerName { sampler: "DPM++ 2M".to_owned(), schedule_type: Some("Karras".to_owned()) }
        }
        other => SamplerName { sampler: other.to_uppercase(), schedule_type: None },
    })
}

fn facts(format: &str) -> PictureFacts {
    PictureFacts {
        job: JobId::mint(),
        request: ResolvedRequest {
            kind: "text_to_image".to_owned(),
            model: "demo".to_owned(),
            prompt: "a strawberry".to_owned(),
            negative_prompt: String::new(),
            width: 128,
            height: 128,
            steps: 20,
            guidance_scale: 4.0,
            scheduler: "ddim".to_owned(),
            seed: 3,
            count: 2,
            output: ResolvedOutput { format: format.to_owned(), quality: None, metadata: true },
            device: None,
            noise_source: "torch_cpu".to_owned(),
            batching: "alone".to_owned(),
            labels: BTreeMap::from([("project".to_owned(), "a secret".to_owned())]),
        },
        index: 1,
        seed: 4,
        model_title: "Demo".to_owned(),
        model_blake3: Some("0123456789abcdef".repeat(4)),
        device: DeviceId::cpu(),
        numerics: Numerics {
            dtype: Dtype::Float32,
            memory_format: MemoryFormat::ChannelsLast,
            threads: 2,
        },
        versions: BTreeMap::from([("torch".to_owned(), "2.15.0".to_owned())]),
        batch_size: 1,
        batch_slot: 0,
        created_at: "2026-01-01T00:00:00.000Z".to_owned(),
    }
}

/// A smooth picture, as real ones are, so that JPEG may be compared.
fn image(width: u32, height: u32, channels: u32) -> RawImage {
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let shade = |n: u32, of: u32| u8::try_from(n * 255 / of.max(1)).unwrap();
            let pixel = [shade(x, width), shade(y, height), 90, 255];
            pixels.extend(&pixel[..channels as usize]);
        }
    }
    RawImage { width, height, channels, pixels }
}

fn encoded(facts: &PictureFacts) -> Encoded {
    encoder().finish(image(33, 17, 3), facts).unwrap()
}

fn read(bytes: &[u8]) -> Parameters {
    read_parameters(bytes).expect("it was written")
}

fn decoded_png(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
    assert_eq!(reader.info().srgb, Some(png::SrgbRenderingIntent::Perceptual));
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width, info.height, pixels)
}

fn decoded_webp(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).unwrap();
    let mut pixels = vec![0; decoder.output_buffer_size().unwrap()];
    decoder.read_image(&mut pixels).unwrap();
    let (width, height) = decoder.dimensions();
    (width, height, pixels)
}

fn decoded_jpeg(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut decoder = zune_jpeg::JpegDecoder::new(Cursor::new(bytes));
    let pixels = decoder.decode().unwrap();
    let (width, height) = decoder.dimensions().unwrap();
    (u32::try_from(width).unwrap(), u32::try_from(height).unwrap(), pixels)
}

#[test]
fn lossless_formats_keep_every_pixel_of_every_shape() {
    for (width, height) in [(1, 1), (3, 2), (128, 128), (33, 17), (1, 300)] {
        for channels in [3, 4] {
            let image = image(width, height, channels);
            let png = encoder().finish(image.clone(), &facts("png")).unwrap();
            assert_eq!((png.media_type, png.extension), ("image/png", "png"));
            assert_eq!(decoded_png(&png.bytes), (width, height, image.pixels.clone()));
            let webp = encoder().finish(image.clone(), &facts("webp")).unwrap();
            assert_eq!((webp.media_type, webp.extension), ("image/webp", "webp"));
            assert_eq!(decoded_webp(&webp.bytes), (width, height, image.pixels));
        }
    }
}

#[test]
fn jpeg_keeps_the_size_and_comes_close() {
    let original = image(128, 96, 3);
    for (quality, tolerance) in [(None, 6), (Some(100), 5), (Some(50), 24)] {
        let mut facts = facts("jpeg");
        facts.request.output.quality = quality;
        let jpeg = encoder().finish(original.clone(), &facts).unwrap();
        assert_eq!((jpeg.media_type, jpeg.extension), ("image/jpeg", "jpg"));
        let (width, height, pixels) = decoded_jpeg(&jpeg.bytes);
        assert_eq!((width, height, pixels.len()), (128, 96, original.pixels.len()));
        let worst = pixels.iter().zip(&original.pixels).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(tolerance), "quality {quality:?} is off by {worst:?}");
    }
}

#[test]
fn the_text_is_in_the_form_that_other_tools_read() {
    for format in FORMATS {
        let parameters = read(&encoded(&facts(format)).bytes);
        assert_eq!(
            parameters.infotext.unwrap(),
            concat!(
                "a strawberry\nSteps: 20, Sampler: DDIM, CFG scale: 4, Seed: 4, Size: 128x128, ",
                "Model hash: 0123456789, Model: Demo, Version: Atelier ",
                env!("CARGO_PKG_VERSION")
            ),
            "{format}"
        );
    }
}

#[test]
fn the_text_names_what_is_known_and_quotes_what_would_break_it() {
    let mut facts = facts("png");
    facts.request.negative_prompt = "blur".to_owned();
    facts.request.guidance_scale = 7.5;
    facts.request.scheduler = "dpmpp_2m".to_owned();
    facts.model_title = "one, two: \"three\"".to_owned();
    facts.model_blake3 = None;
    assert_eq!(
        read(&encoded(&facts).bytes).infotext.unwrap(),
        concat!(
            "a strawberry\nNegative prompt: blur\nSteps: 20, Sampler: DPM++ 2M, ",
            "Schedule type: Karras, CFG scale: 7.5, Seed: 4, Size: 128x128, ",
            "Model: \"one, two: \\\"three\\\"\", Version: Atelier ",
            env!("CARGO_PKG_VERSION")
        )
    );
}

#[test]
fn a_png_says_in_the_older_chunk_what_latin_1_can_say() {
    for (prompt, older) in [("crème brûlée", true), ("草莓", false)] {
        let mut facts = facts("png");
        facts.request.prompt = prompt.to_owned();
        let file = encoded(&facts).bytes;
        let reader = png::Decoder::new(Cursor::new(&file)).read_info().unwrap();
        let texts = &reader.info().uncompressed_latin1_text;
        assert_eq!(texts.iter().any(|chunk| chunk.keyword == "parameters"), older, "{prompt}");
    }
}

#[test]
fn the_bundle_says_how_to_draw_it_again_and_nothing_private() {
    for format in FORMATS {
        let facts = facts(format);
        let bundle = read(&encoded(&facts).bytes).bundle.unwrap();
        let request = ResolvedRequest { labels: BTreeMap::new(), ..facts.request.clone() };
        assert_eq!(bundle.request, request);
        assert_eq!(bundle.picture, Picture { index: 1, seed: 4 });
        assert_eq!(bundle.model.blake3, facts.model_blake3);
        assert_eq!((bundle.model.id.as_str(), bundle.model.title.as_str()), ("demo", "Demo"));
        assert_eq!((bundle.numerics, bundle.versions), (facts.numerics, facts.versions));
        assert_eq!(bundle.batch, Batch { size: 1, slot: 0 });
        assert_eq!((bundle.job, bundle.device), (facts.job, facts.device));
        assert_eq!((bundle.noise_source.as_str(), bundle.version), ("torch_cpu", 1));
    }
}

#[test]
fn any_script_comes_back_in_any_format() {
    for prompt in
        ["crème brûlée", "草莓, いちご", "🍓 \u{1f468}\u{200d}\u{1f373}", "a\tb \"c\" \\d"]
    {
        for format in FORMATS {
            let mut facts = facts(format);
            facts.request.prompt = prompt.to_owned();
            facts.request.negative_prompt = prompt.to_owned();
            let parameters = read(&encoded(&facts).bytes);
            let bundle = parameters.bundle.unwrap();
            assert_eq!((bundle.request.prompt.as_str(), format), (prompt, format));
            let infotext = parameters.infotext.unwrap();
            let start = format!("{prompt}\nNegative prompt: {prompt}\nSteps: 20");
            assert!(infotext.starts_with(&start), "{format}: {infotext}");
        }
    }
}

#[test]
fn the_longest_prompts_lose_no_bundle() {
    // (prompt, whether a JPEG has room for A1111's text as well)
    let cases = [
        ("a".repeat(10_000), true),
        ("\"".repeat(10_000), true),
        ("莓".repeat(10_000), true),
        ("🍓".repeat(10_000), false),
    ];
    for (prompt, room_in_jpeg) in cases {
        for format in FORMATS {
            let mut facts = facts(format);
            facts.request.prompt = prompt.clone();
            facts.request.negative_prompt = prompt.clone();
            let file = encoded(&facts);
            let parameters = read(&file.bytes);
            assert_eq!(parameters.bundle.unwrap().request.prompt, prompt, "{format}");
            let room = format != "jpeg" || room_in_jpeg;
            assert_eq!(parameters.infotext.is_some(), room, "{format}");
            if format == "jpeg" {
                assert_eq!(decoded_jpeg(&file.bytes).0, 33);
            }
        }
    }
}

#[test]
fn a_zero_in_a_prompt_breaks_no_format() {
    for format in FORMATS {
        let mut facts = facts(format);
        facts.request.prompt = "a\0b".to_owned();
        let parameters = read(&encoded(&facts).bytes);
        assert!(parameters.infotext.unwrap().starts_with("ab\n"), "{format}");
        assert_eq!(parameters.bundle.unwrap().request.prompt, "a\0b", "{format}");
    }
}

#[test]
fn without_metadata_a_file_says_nothing_about_itself() {
    for format in FORMATS {
        let mut facts = facts(format);
        facts.request.output.metadata = false;
        let file = encoded(&facts);
        assert_eq!(read_parameters(&file.bytes), None, "{format}");
        for word in ["strawberry", "Atelier", "atelier", "torch", "Exif"] {
            let found = file.bytes.windows(word.len()).any(|bytes| bytes == word.as_bytes());
            assert!(!found, "{format} says {word}");
        }
    }
}

#[test]
fn no_file_holds_the_callers_labels() {
    for format in FORMATS {
        let file = encoded(&facts(format));
        let found = file.bytes.windows(8).any(|bytes| bytes == b"a secret");
        assert!(!found, "{format}");
    }
}

#[test]
fn pixels_that_do_not_fill_the_picture_are_refused() {
    for (width, height, channels) in
        [(33, 18, 3), (33, 17, 4), (33, 17, 1), (u32::MAX, u32::MAX, 4)]
    {
        let image = RawImage { width, height, channels, ..image(33, 17, 3) };
        let error = encoder().finish(image, &facts("png")).expect_err("wrong size");
        assert_eq!(error.code, ErrorCode::PostprocessingFailed);
    }
    let empty = RawImage { width: 0, height: 0, channels: 3, pixels: Vec::new() };
    for format in FORMATS {
        let error = encoder().encode(empty.clone(), &facts(format)).expect_err("no pixels");
        assert!(matches!(error, PostprocessingError::Dimensions { .. }), "{error}");
    }
}

#[test]
fn a_format_refuses_what_it_cannot_hold() {
    let wide = |width| RawImage { width, height: 1, ..image(width, 1, 3) };
    for (format, limit) in [("webp", 16_384), ("jpeg", 65_535)] {
        assert!(encoder().encode(wide(limit), &facts(format)).is_ok());
        let error = encoder().encode(wide(limit + 1), &facts(format)).expect_err("too wide");
        assert!(matches!(error, PostprocessingError::Dimensions { .. }), "{error}");
    }
    let unknown = encoder().encode(image(1, 1, 3), &facts("gif")).expect_err("no such format");
    assert_eq!(unknown, PostprocessingError::Format { format: "gif".to_owned() });
    let mut glass = image(2, 2, 4);
    assert!(encoder().encode(glass.clone(), &facts("jpeg")).is_ok());
    glass.pixels[3] = 128;
    let error = encoder().encode(glass, &facts("jpeg")).expect_err("half transparent");
    assert_eq!(error, PostprocessingError::Transparency);
}

#[test]
fn a_png_whose_texts_stand_behind_the_pixels_or_are_packed_is_read() {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[1, 2, 3]).unwrap();
    let text = png::text_metadata::ZTXtChunk::new("parameters", "somebody else's");
    writer.write_text_chunk(&text).unwrap();
    writer.finish().unwrap();
    let parameters = read(&bytes);
    assert_eq!(parameters.infotext.as_deref(), Some("somebody else's"));
    assert_eq!(parameters.bundle, None);
}

#[test]
fn a_text_that_unpacks_to_more_than_the_limit_is_left_alone() {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.add_ztxt_chunk("parameters".to_owned(), "a".repeat(2 << 20)).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[1, 2, 3]).unwrap();
    writer.finish().unwrap();
    assert!(bytes.len() < 1 << 16, "it is packed");
    assert_eq!(read_parameters(&bytes), None);
}

#[test]
fn a_bundle_of_a_later_version_is_not_half_understood() {
    let later = |json: &str| {
        let mut value: serde_json::Value = serde_json::from_str(json).unwrap();
        value["version"] = 2.into();
        value.to_string()
    };
    let json = Bundle::new(&facts("png"), "Atelier 9").to_json();
    assert!(Bundle::from_json(json.as_bytes()).is_some());
    assert_eq!(Bundle::from_json(later(&json).as_bytes()), None);
}

proptest! {
    /// Bundles are small and strict JSON, so a damaged one is none; a text may be damaged, but only within the file.
    #[test]
    fn hostile_files_have_parameters_or_none_but_never_a_panic(
        format in prop::sample::select(&FORMATS[..]),
        cut in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut bytes = encoder().finish(image(8, 8, 3), &facts(format)).unwrap().bytes;
        for (at, byte) in damage {
            let place = at.index(bytes.len().min(2000));
            bytes[place] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let limit = 3 * bytes.len();
        if let Some(parameters) = read_parameters(&bytes) {
            prop_assert!(parameters.infotext.is_none_or(|text| text.len() <= limit));
        }
    }

    #[test]
    fn noise_behind_a_magic_number_is_survived(
        magic in prop::sample::select(&MAGIC[..]),
        noise in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = magic.to_vec();
        bytes.extend(noise);
        let bundle = read_parameters(&bytes).and_then(|parameters| parameters.bundle);
        prop_assert_eq!(bundle, None);
    }
}
