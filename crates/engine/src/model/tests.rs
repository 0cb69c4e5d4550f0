//! The domain from outside: folders on disk, good and bad, through the handle.

use super::{Format, ModelConfig, ModelError, ModelHandle, Problem, ScanReport};
use crate::clock::Clock;
use crate::files;
use atelier_protocol::http::ModelLimits;
use atelier_protocol::{Bytes, ErrorBody, ErrorCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn start(folders: &[&Path]) -> ModelHandle {
    let folders = folders.iter().map(|folder| (*folder).to_owned()).collect();
    let clock = Clock::fixed(Timestamp::UNIX_EPOCH);
    ModelHandle::start(ModelConfig { folders, default_model: None }, clock)
}

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

fn write(path: &Path, bytes: &[u8]) {
    files::create_dir_all(path.parent().unwrap()).unwrap();
    files::create(path).and_then(|mut file| file.write_all(bytes)).unwrap();
}

/// A safetensors file of half-precision tensors.
fn weights(tensors: &BTreeMap<&str, Vec<u64>>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<u64>();
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [at, end]});
        header.insert((*name).to_owned(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string();
    super::safetensors::tests::file(&header, usize::try_from(at).unwrap())
}

/// The smallest folder that is accepted; tests break one thing in it.
struct Tiny(TempDir);

impl Tiny {
    fn new() -> Self {
        let tiny = Self(tempfile::tempdir().unwrap());
        tiny.json(
            "model_index.json",
            &json!({
                "_class_name": "StableDiffusionPipeline",
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "scheduler": ["diffusers", "PNDMScheduler"],
                "safety_checker": [null, null],
            }),
        );
        tiny.json(
            "unet/config.json",
            &json!({
                "in_channels": 4, "out_channels": 4, "block_out_channels": [8, 16],
                "cross_attention_dim": 6, "sample_size": 16, "layers_per_block": 1,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            }),
        );
        tiny.json("vae/config.json", &json!({"latent_channels": 4, "block_out_channels": [4, 8]}));
        tiny.json(
            "text_encoder/config.json",
            &json!({
                "hidden_size": 6, "vocab_size": 10, "max_position_embeddings": 7,
            }),
        );
        tiny.json("tokenizer/vocab.json", &json!({}));
        write(&tiny.path("tokenizer/merges.txt"), b"");
        tiny.json(
            "scheduler/scheduler_config.json",
            &json!({
                "_class_name": "PNDMScheduler", "beta_end": 0.012,
            }),
        );
        tiny.unet(|_| ());
        tiny.vae(|_| ());
        tiny.text(|_| ());
        tiny
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("tiny").join(name)
    }

    fn json(&self, name: &str, value: &Value) {
        write(&self.path(name), value.to_string().as_bytes());
    }

    /// Changes one key of a description; null takes it away.
    fn set(&self, name: &str, key: &str, value: Value) {
        let text = files::read_to_string(&self.path(name)).unwrap();
        let mut object: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        if value.is_null() {
            object.remove(key);
        } else {
            object.insert(key.to_owned(), value);
        }
        self.json(name, &Value::Object(object));
    }

    fn remove(&self, name: &str) {
        files::remove_file(&self.path(name)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        files::rename(&self.path(from), &self.path(to)).unwrap();
    }

    fn unet(&self, change: impl FnOnce(&mut BTreeMap<&str, Vec<u64>>)) {
        let mut tensors = BTreeMap::from([
            ("conv_in.weight", vec![8, 4, 3, 3]),
            ("conv_in.bias", vec![8]),
            ("time_embedding.linear_1.weight", vec![32, 8]),
            ("conv_out.weight", vec![4, 8, 3, 3]),
            ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", vec![16, 6]),
        ]);
        change(&mut tensors);
        write(&self.path(UNET), &weights(&tensors));
    }

    fn vae(&self, change: impl FnOnce(&mut BTreeMap<&str, Vec<u64>>)) {
        let mut tensors = BTreeMap::from([
            ("encoder.conv_in.weight", vec![4, 3, 3, 3]),
            ("decoder.conv_in.weight", vec![8, 4, 3, 3]),
            ("decoder.conv_out.weight", vec![3, 4, 3, 3]),
        ]);
        change(&mut tensors);
        write(&self.path(VAE), &weights(&tensors));
    }

    fn text(&self, change: impl FnOnce(&mut BTreeMap<&str, Vec<u64>>)) {
        let mut tensors = BTreeMap::from([
            ("text_model.embeddings.token_embedding.weight", vec![10, 6]),
            ("text_model.embeddings.position_embedding.weight", vec![7, 6]),
        ]);
        change(&mut tensors);
        write(&self.path(TEXT), &weights(&tensors));
    }

    async fn scan(&self) -> (ModelHandle, ScanReport) {
        let handle = start(&[self.0.path()]);
        let report = handle.scan().await.unwrap();
        (handle, report)
    }
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

#[tokio::test]
async fn the_demo_model_is_usable_and_has_24_million_parameters() {
    let handle = start(&[&demo_folder()]);
    assert_eq!(handle.view().generation, 0);
    let report = handle.scan().await.unwrap();
    assert_eq!((report.usable, report.unusable), (vec!["demo".to_owned()], vec![]));
    assert_eq!(handle.view().generation, 1);

    let model = handle.resolve(None).unwrap();
    assert_eq!(model.title, "Atelier demo (emoji, 128 px)");
    assert_eq!(model.parameters, 23_933_547);
    assert_eq!(model.weights_bytes(atelier_protocol::worker::Dtype::Float32).0, 95_734_188);
    let limits = ModelLimits { min_size: 64, max_size: 256, multiple_of: 16, max_steps: 150 };
    assert_eq!(model.card.limits, limits);
    assert_eq!(model.facts.multiple_of, 16, "vae ÷ 4, UNet ÷ 4");
    let defaults = &model.card.defaults;
    assert_eq!((defaults.width, defaults.height, defaults.steps), (128, 128, 20));
    assert_eq!((defaults.guidance_scale, defaults.scheduler.as_str()), (4.0, "ddim"));
    assert_eq!(model.card.scheduler.class, "DDIMScheduler");
    assert_eq!(model.card.scheduler.config["prediction_type"], "v_prediction");
    assert!(model.card.fallback);

    let vocabulary = model.card.vocabulary.clone().unwrap();
    let known = "a 3d render of a red apple on a blue background, flag of Japan, strawberries";
    assert_eq!(vocabulary.unknown(known), Vec::<String>::new());
    assert_eq!(vocabulary.unknown("a zeppelin over Reykjavik"), ["zeppelin", "reykjavik"]);

    let entries = handle.entries(|_| vec!["cpu".to_owned()]);
    assert_eq!(entries.len(), 1);
    assert!(entries[0].usable && entries[0].default && entries[0].blake3.is_none());
    assert_eq!(entries[0].components[0].dtypes, ["f16"]);

    let hash = handle.hash(&model).await.unwrap();
    assert_eq!(handle.entries(|_| Vec::new())[0].blake3.as_ref(), Some(&hash));
    assert_eq!(handle.resolve(Some(&hash[..10])).unwrap().id, "demo");
}

#[tokio::test]
async fn a_folder_without_a_card_gets_its_limits_from_its_configurations() {
    let tiny = Tiny::new();
    let (handle, report) = tiny.scan().await;
    assert_eq!(report.usable, ["tiny"], "{:?}", report.unusable);
    let model = handle.resolve(Some("tiny")).unwrap();
    assert_eq!((model.facts.vae_factor, model.facts.multiple_of), (2, 4));
    let limits = ModelLimits { min_size: 64, max_size: 64, multiple_of: 4, max_steps: 150 };
    assert_eq!(model.card.limits, limits);
    assert_eq!(model.card.defaults.width, 64, "native is 32, the smallest that is served is 64");
    assert_eq!(model.card.defaults.scheduler, "PNDMScheduler");
    assert!(!model.card.scheduler.config.contains_key("_class_name"));
}

#[tokio::test]
async fn split_weights_have_the_same_identity_as_whole_ones() {
    let whole = Tiny::new();
    let (handle, _) = whole.scan().await;
    let expected = handle.hash(&handle.resolve(Some("tiny")).unwrap()).await.unwrap();

    let split = Tiny::new();
    let (one, two) = ("decoder.conv_in.weight", "encoder.conv_in.weight");
    let bytes = files::read(&split.path(VAE)).unwrap();
    let header = super::safetensors::read_header(&split.path(VAE)).unwrap();
    let part = |names: &[&str]| {
        let mut data: Vec<u8> = Vec::new();
        let mut entries = serde_json::Map::new();
        for tensor in header.tensors.iter().filter(|t| names.contains(&t.name.as_str())) {
            let begin = data.len();
            data.extend(
                &bytes
                    [usize::try_from(tensor.begin).unwrap()..usize::try_from(tensor.end).unwrap()],
            );
            let range = [begin, data.len()];
            let entry = json!({"dtype": "F16", "shape": tensor.shape, "data_offsets": range});
            entries.insert(tensor.name.clone(), entry);
        }
        let header = Value::Object(entries).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        file
    };
    split.remove(VAE);
    write(&split.path("vae/b.safetensors"), &part(&[one]));
    write(&split.path("vae/a.safetensors"), &part(&[two, "decoder.conv_out.weight"]));
    let index = format!("{VAE}.index.json");
    let map = json!({"weight_map": {
        one: "b.safetensors", two: "a.safetensors", "decoder.conv_out.weight": "a.safetensors",
    }});
    split.json(&index, &map);
    let (handle, report) = split.scan().await;
    assert_eq!(report.usable, ["tiny"], "{:?}", report.unusable);
    let model = handle.resolve(Some("tiny")).unwrap();
    assert_eq!(handle.hash(&model).await.unwrap(), expected);

    for (map, reason) in [
        (json!({one: "../unet/x.safetensors"}), "is not the name of a safetensors file beside it"),
        (json!({one: "a.safetensors"}), "`decoder.conv_in.weight` is not in a.safetensors"),
        (json!({one: "c.safetensors"}), "c.safetensors"),
    ] {
        split.json(&index, &json!({ "weight_map": map }));
        let (_, report) = split.scan().await;
        let problem = report.unusable[0].1.to_string();
        assert!(problem.contains(reason), "{problem}");
    }
}

#[tokio::test]
async fn a_file_that_changed_since_the_scan_is_not_hashed_at_random() {
    let tiny = Tiny::new();
    let (handle, _) = tiny.scan().await;
    let model = handle.resolve(Some("tiny")).unwrap();
    let before = handle.hash(&model).await.unwrap();
    tiny.vae(|tensors| {
        tensors.insert("another", vec![1]);
    });
    assert_eq!(handle.hash(&model).await.unwrap(), before, "remembered for the file as it was");
    let fresh = start(&[tiny.0.path()]);
    let error = fresh.hash(&model).await.expect_err("the file is another one");
    assert_eq!(error.code(), ErrorCode::ModelUnreadable);
    assert!(error.to_string().contains("changed since"), "{error}");

    handle.scan().await.unwrap();
    let after = handle.resolve(Some("tiny")).unwrap();
    assert_ne!(handle.hash(&after).await.unwrap(), before);
}

type Break = Box<dyn Fn(&Tiny)>;

fn set(file: &'static str, key: &'static str, value: Value) -> Break {
    Box::new(move |tiny| tiny.set(file, key, value.clone()))
}

#[tokio::test]
async fn a_broken_folder_is_listed_with_what_is_wrong_and_never_used() {
    use ErrorCode::{ModelUnreadable, ModelUnsupported};
    let remove = |name: &'static str| -> Break { Box::new(move |tiny| tiny.remove(name)) };
    let text = |name: &'static str, text: &'static str| -> Break {
        Box::new(move |tiny| write(&tiny.path(name), text.as_bytes()))
    };
    let unet = |name: &'static str, shape: Option<Vec<u64>>| -> Break {
        Box::new(move |tiny| {
            tiny.unet(|tensors| {
                tensors.remove(name);
                tensors.extend(shape.clone().map(|shape| (name, shape)));
            });
        })
    };
    let index = "model_index.json";
    let cross = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let cases: Vec<(Break, ErrorCode, &str)> = vec![
        (text(index, "{"), ModelUnreadable, "model_index.json: EOF"),
        (text(index, "[]"), ModelUnreadable, "model_index.json: invalid type"),
        (set(index, "_class_name", Value::Null), ModelUnreadable, "names no `_class_name`"),
        (
            set(index, "_class_name", json!("FluxPipeline")),
            ModelUnsupported,
            "looks like a FluxPipeline",
        ),
        (set(index, "vae", Value::Null), ModelUnreadable, "names no `vae`"),
        (set(index, "vae", json!([null, null])), ModelUnreadable, "not a pair"),
        (set(index, "vae", json!("x")), ModelUnreadable, "names no `vae`"),
        (
            set(index, "unet", json!(["diffusers", "UNet3D"])),
            ModelUnsupported,
            "with a UNet3D as its unet",
        ),
        (
            set(index, "unet", json!(["my_code", "UNet2DConditionModel"])),
            ModelUnsupported,
            "code of its own (my_code)",
        ),
        (remove("unet/config.json"), ModelUnreadable, "unet/config.json is missing"),
        (text("vae/config.json", "nonsense"), ModelUnreadable, "vae/config.json: expected"),
        (
            remove("scheduler/scheduler_config.json"),
            ModelUnreadable,
            "scheduler_config.json is missing",
        ),
        (remove("tokenizer/merges.txt"), ModelUnreadable, "tokenizer/merges.txt is missing"),
        (remove("tokenizer/vocab.json"), ModelUnreadable, "tokenizer/vocab.json is missing"),
        (remove(TEXT), ModelUnreadable, "text_encoder/model.safetensors is missing"),
        (
            Box::new(|tiny| tiny.rename(UNET, "unet/diffusion_pytorch_model.fp16.safetensors")),
            ModelUnreadable,
            "only `diffusion_pytorch_model.fp16.safetensors` is there",
        ),
        (
            Box::new(|tiny| tiny.rename(UNET, "unet/diffusion_pytorch_model.bin")),
            ModelUnsupported,
            "unet/diffusion_pytorch_model.bin is a pickle file",
        ),
        (
            Box::new(|tiny| {
                let bytes = files::read(&tiny.path(UNET)).unwrap();
                write(&tiny.path(UNET), &bytes[..bytes.len() - 1]);
            }),
            ModelUnreadable,
            "it may be cut off",
        ),
        (
            text(VAE, "not weights at all"),
            ModelUnreadable,
            "vae/diffusion_pytorch_model.safetensors: at byte 0",
        ),
        (unet("conv_in.weight", None), ModelUnreadable, "has no tensor `conv_in.weight`"),
        (unet("conv_in.weight", Some(vec![8, 9, 3, 3])), ModelUnreadable, "should be [8, 4, 3, 3]"),
        (unet("conv_out.weight", Some(vec![8])), ModelUnreadable, "should begin with [4, 8]"),
        (unet(cross, None), ModelUnreadable, "has no cross-attention"),
        (unet(cross, Some(vec![16, 7])), ModelUnreadable, "should read text of width 6"),
        (
            set("unet/config.json", "cross_attention_dim", json!(7)),
            ModelUnreadable,
            "the text encoder gives 6",
        ),
        (
            set("unet/config.json", "in_channels", json!(9)),
            ModelUnsupported,
            "an inpainting or upscaling model",
        ),
        (
            set("unet/config.json", "in_channels", json!(3)),
            ModelUnreadable,
            "the UNet reads 3 and writes 4",
        ),
        (
            set("unet/config.json", "class_embed_type", json!("timestep")),
            ModelUnsupported,
            "extra conditioning",
        ),
        (
            set("unet/config.json", "block_out_channels", json!([])),
            ModelUnreadable,
            "block_out_channels is []",
        ),
        (
            set("unet/config.json", "block_out_channels", json!([0, 1])),
            ModelUnreadable,
            "block_out_channels is [0, 1]",
        ),
        (
            set("unet/config.json", "block_out_channels", json!(vec![1; 40])),
            ModelUnreadable,
            "block_out_channels is [1",
        ),
        (set("unet/config.json", "sample_size", json!(0)), ModelUnreadable, "sample_size is 0"),
        (set("unet/config.json", "in_channels", json!(-4)), ModelUnreadable, "invalid value"),
        (
            set("vae/config.json", "latent_channels", json!(16)),
            ModelUnreadable,
            "latents of the autoencoder have 16",
        ),
        (
            set("text_encoder/config.json", "vocab_size", json!(11)),
            ModelUnreadable,
            "should be [11, 6]",
        ),
        (text("atelier.json", r#"{"title": 3}"#), ModelUnreadable, "atelier.json: invalid type"),
    ];
    for (break_it, code, expected) in cases {
        let tiny = Tiny::new();
        break_it(&tiny);
        let (handle, report) = tiny.scan().await;
        assert_eq!(report.usable, Vec::<String>::new(), "{expected}");
        let (id, problem) = &report.unusable[0];
        assert_eq!((id.as_str(), problem.code()), ("tiny", code), "{problem}");
        assert!(problem.to_string().contains(expected), "{problem}");
        let error = handle.resolve(Some("tiny")).expect_err("it cannot be used");
        assert!(matches!(&error, ModelError::Unusable { problem: p, .. } if **p == *problem));
        let entry = &handle.entries(|_| Vec::new())[0];
        assert_eq!(entry.problem, Some(ErrorBody::from(problem.clone())));
        assert!(!entry.usable && !entry.default);
    }
}

#[tokio::test]
async fn other_files_are_listed_with_what_they_look_like() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let lora = weights(&BTreeMap::from([("lora_unet_x.lora_up.weight", vec![1])]));
    write(&path("loras/style.safetensors"), &lora);
    write(&path("checkpoints/cut.safetensors"), &lora[..20]);
    write(&path("checkpoints/old.ckpt"), b"\x80\x02");
    write(&path("checkpoints/notes.txt"), b"hello");
    let vae = weights(&BTreeMap::from([("decoder.conv_in.weight", vec![1])]));
    write(&path("vae/pytorch/config.json"), br#"{"_class_name": "AutoencoderKL"}"#);
    write(&path("vae/pytorch/diffusion_pytorch_model.safetensors"), &vae);
    let cached = path("hub/models--someone--great-model/snapshots/0a1b2c/model_index.json");
    write(&cached, br#"{"_class_name": "StableDiffusionXLPipeline"}"#);
    symlink(root.path(), path("checkpoints/loop")).unwrap();

    let handle = start(&[root.path()]);
    let report = handle.scan().await.unwrap();
    assert_eq!((report.usable.len(), report.ignored), (0, 1));
    assert!(report.findings[0].contains("leads back"), "{:?}", report.findings);
    let view = handle.view();
    let found: Vec<(&str, Format, String)> = view
        .unusable
        .iter()
        .map(|model| (model.id.as_str(), model.format, model.problem.to_string()))
        .collect();
    let expected = [
        ("cut", Format::Safetensors, "cut.safetensors: at byte 0: it claims a header of"),
        ("great-model", Format::DiffusersFolder, "looks like a StableDiffusionXLPipeline"),
        ("old", Format::Pickle, "old.ckpt is a pickle file"),
        ("pytorch", Format::ComponentFolder, "looks like a AutoencoderKL, one part of a pipeline"),
        ("style", Format::Safetensors, "it looks like a LoRA"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((id, format, problem), (want_id, want_format, text)) in found.iter().zip(expected) {
        assert_eq!((*id, *format), (want_id, want_format));
        assert!(problem.contains(text), "{problem}");
    }
    let old = view.unusable.iter().find(|model| model.id == "old").unwrap();
    assert_eq!(old.bytes, Bytes(2));
    assert!(matches!(old.problem, Problem::Pickle { .. }));

    let none = handle.resolve(None).expect_err("nothing is usable");
    assert_eq!(none.code(), ErrorCode::ModelNotFound);
    assert!(none.to_string().starts_with("no usable model was found in /"), "{none}");
}

#[tokio::test]
async fn a_configured_default_is_resolved_like_any_name() {
    let folders = vec![demo_folder()];
    let config = ModelConfig { folders, default_model: Some("dreamshaper".to_owned()) };
    let handle = ModelHandle::start(config, Clock::system());
    handle.scan().await.unwrap();
    let error = handle.resolve(None).expect_err("it is not here");
    assert_eq!(error.to_string(), "no model is called `dreamshaper`");
    assert_eq!(handle.resolve(Some("Demo")).unwrap().id, "demo");
}
