//! Looks at one candidate: reads its descriptions and the headers of its weights, and says whether
//! it can be used.
//!
//! Blocking; called off the async threads. Whatever a folder contains, the answer is a model or a
//! [`Problem`].

use super::card::{self, SchedulerConfig};
use super::safetensors::{Tensor, read_header};
use super::scan::Candidate;
use super::stable_diffusion::{self, TextConfig, UnetConfig, VaeConfig, Weights};
use super::view::FileStamp;
use super::{Component, FAMILY, Format, Model, Problem, WeightFile, looks};
use crate::files;
use atelier_protocol::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Descriptions are kilobytes; a longer one is not what it says.
const MAX_JSON_BYTES: u64 = 16 << 20;
const PIPELINE_CLASS: &str = "StableDiffusionPipeline";
/// Component, accepted classes, stem of its weights.
const PARTS: [(&str, &[&str], Option<&str>); 5] = [
    ("unet", &["UNet2DConditionModel"], Some("diffusion_pytorch_model")),
    ("vae", &["AutoencoderKL"], Some("diffusion_pytorch_model")),
    ("text_encoder", &["CLIPTextModel"], Some("model")),
    ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"], None),
    ("scheduler", &[], None),
];

/// What became of a candidate. The id of the model is given by the catalogue, which knows all
/// names.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) path: PathBuf,
    /// Folder or file name without its extension.
    pub(super) stem: String,
    pub(super) format: Format,
    pub(super) bytes: Bytes,
    pub(super) created: i64,
    pub(super) outcome: Result<Box<Model>, Problem>,
}

pub(super) fn examine(candidate: &Candidate) -> Examined {
    let (path, format) = match candidate {
        Candidate::Pipeline(path) => (path, Format::DiffusersFolder),
        Candidate::Component(path) => (path, Format::ComponentFolder),
        Candidate::Safetensors(path) => (path, Format::Safetensors),
        Candidate::Pickle(path) => (path, Format::Pickle),
    };
    // Folders may be configured relative to where the node was started; workers are started
    // elsewhere.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let stem = stem(&path, format);
    let outcome = match format {
        Format::DiffusersFolder => pipeline(&path, &stem).map(Box::new),
        Format::ComponentFolder => Err(component_folder(&path)),
        Format::Safetensors => Err(single_file(&path)),
        Format::Pickle => Err(Problem::Pickle { file: file_name(&path) }),
    };
    let bytes = match &outcome {
        Ok(model) => model.bytes,
        Err(_) => Bytes(size(&path, 2)),
    };
    Examined { created: created(&path, format), bytes, stem, path, format, outcome }
}

/// The name that people know a model by. Files with the names that libraries give are called after
/// their folder, and snapshots of a hub's cache (`models--owner--name/snapshots/REVISION`) after
/// what they are a snapshot of.
fn stem(path: &Path, format: Format) -> String {
    const GENERIC: [&str; 5] = [
        "model",
        "diffusion_pytorch_model",
        "pytorch_model",
        "adapter_model",
        "pytorch_lora_weights",
    ];
    let folder_name = |path: &Path| -> String {
        let cached = path.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent);
        let cached = cached.map(file_name).filter(|name| name.starts_with("models--"));
        let cached = cached.and_then(|name| name.rsplit("--").next().map(str::to_owned));
        cached.unwrap_or_else(|| file_name(path))
    };
    match format {
        Format::DiffusersFolder | Format::ComponentFolder => folder_name(path),
        Format::Safetensors | Format::Pickle => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match path.parent() {
                Some(parent) if GENERIC.contains(&stem.as_str()) => folder_name(parent),
                Some(_) | None => stem,
            }
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn created(path: &Path, format: Format) -> i64 {
    let described = match format {
        Format::DiffusersFolder => path.join("model_index.json"),
        Format::ComponentFolder => path.join("config.json"),
        Format::Safetensors | Format::Pickle => path.to_owned(),
    };
    files::metadata(&described).map_or(0, |metadata| metadata.mtime())
}

/// Bytes of ordinary files, down to a depth.
fn size(path: &Path, depth: u32) -> u64 {
    match files::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(metadata) if metadata.is_dir() && depth > 0 => files::read_dir(path)
            .map_or(0, |entries| entries.iter().map(|entry| size(entry, depth - 1)).sum()),
        Ok(_) | Err(_) => 0,
    }
}

fn single_file(path: &Path) -> Problem {
    match read_header(path) {
        Err(fault) => Problem::reading(file_name(path), fault),
        Ok(header) => {
            let folder = path.parent().map(file_name);
            let what = looks::by_tensors(&header.tensors, folder.as_deref());
            Problem::Unsupported { what: what.to_owned() }
        }
    }
}

fn component_folder(path: &Path) -> Problem {
    match read_json::<Map<String, Value>>(path, "config.json") {
        Err(problem) => problem,
        Ok(config) => {
            let class = config.get("_class_name").and_then(Value::as_str).or_else(|| {
                config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str)
            });
            let what = match class {
                Some(class) => format!("a {class}, one part of a pipeline"),
                None => "one part of a pipeline".to_owned(),
            };
            Problem::Unsupported { what }
        }
    }
}

fn pipeline(folder: &Path, stem: &str) -> Result<Model, Problem> {
    let index: Map<String, Value> = read_json(folder, "model_index.json")?;
    match index.get("_class_name").and_then(Value::as_str) {
        Some(PIPELINE_CLASS) => {}
        Some(other) => return Err(Problem::Unsupported { what: format!("a {other}") }),
        None => {
            let reason = "it names no `_class_name`".to_owned();
            return Err(Problem::Unreadable { file: "model_index.json".to_owned(), reason });
        }
    }
    let mut components = Vec::new();
    let mut scheduler_class = String::new();
    for (name, classes, weights) in PARTS {
        let class = class_of(&index, name)?;
        if !classes.is_empty() && !classes.contains(&class) {
            return Err(Problem::Unsupported {
                what: format!("a {PIPELINE_CLASS} with a {class} as its {name}"),
            });
        }
        if let Some(weights) = weights {
            let files = weight_files(folder, name, weights)?;
            components.push(Component { name: name.to_owned(), class: class.to_owned(), files });
        } else if name == "scheduler" {
            class.clone_into(&mut scheduler_class);
        }
    }
    tokenizer_is_there(folder)?;
    let scheduler = scheduler(folder, &scheduler_class)?;
    let facts = check(folder, &components)?;
    let (title, card) = card::read(folder, &facts, scheduler)?;
    let bytes = components.iter().flat_map(|c| &c.files).map(|file| file.stamp.bytes).sum();
    Ok(Model {
        id: String::new(),
        title: title.unwrap_or_else(|| stem.to_owned()),
        folder: folder.to_owned(),
        format: Format::DiffusersFolder,
        family: FAMILY,
        bytes: Bytes(bytes),
        parameters: components.iter().map(Component::parameters).sum(),
        components,
        created: created(folder, Format::DiffusersFolder),
        card,
        facts,
    })
}

/// The class of a part in `model_index.json`: `"unet": ["diffusers", "UNet2DConditionModel"]`.
fn class_of<'a>(index: &'a Map<String, Value>, part: &str) -> Result<&'a str, Problem> {
    let fail = |reason: String| Problem::Unreadable { file: "model_index.json".to_owned(), reason };
    let Some(Value::Array(pair)) = index.get(part) else {
        return Err(fail(format!("it names no `{part}`")));
    };
    match pair.as_slice() {
        [Value::String(library), Value::String(class)] => {
            // Any other library would be code that came with the model.
            if library == "diffusers" || library == "transformers" {
                Ok(class)
            } else {
                let what = format!("a pipeline whose {part} needs code of its own ({library})");
                Err(Problem::Unsupported { what })
            }
        }
        _ => Err(fail(format!("its `{part}` is not a pair of library and class"))),
    }
}

fn read_json<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T, Problem> {
    let fail = |reason: String| Problem::Unreadable { file: name.to_owned(), reason };
    let path = folder.join(name);
    match files::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Problem::Missing { file: name.to_owned() });
        }
        Err(error) => return Err(fail(error.to_string())),
        Ok(metadata) if !metadata.is_file() => {
            return Err(fail("it is not an ordinary file".to_owned()));
        }
        Ok(metadata) if metadata.len() > MAX_JSON_BYTES => {
            return Err(fail(format!("it is {} long", Bytes(metadata.len()))));
        }
        Ok(_) => {}
    }
    let bytes = files::read(&path).map_err(|error| fail(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))
}

/// The files with the weights of one part, their headers read.
fn weight_files(folder: &Path, part: &str, stem: &str) -> Result<Vec<WeightFile>, Problem> {
    let whole = format!("{part}/{stem}.safetensors");
    if folder.join(&whole).exists() {
        return Ok(vec![weight_file(folder, &whole)?]);
    }
    let index = format!("{whole}.index.json");
    if folder.join(&index).exists() {
        return split_weights(folder, part, &index);
    }
    let names: Vec<String> = files::read_dir(&folder.join(part))
        .map(|paths| paths.iter().map(|path| file_name(path)).collect())
        .unwrap_or_default();
    let with = |endings: &[&str]| {
        names.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending)))
    };
    if let Some(variant) = with(&[".safetensors"]) {
        let reason = format!("it is missing, and only `{variant}` is there; give that its name");
        return Err(Problem::Unreadable { file: whole, reason });
    }
    if let Some(pickle) = with(&[".bin", ".ckpt", ".pt", ".pth"]) {
        return Err(Problem::Pickle { file: format!("{part}/{pickle}") });
    }
    Err(Problem::Missing { file: whole })
}

fn weight_file(folder: &Path, name: &str) -> Result<WeightFile, Problem> {
    let path = folder.join(name);
    let header = read_header(&path).map_err(|fault| Problem::reading(name, fault))?;
    let stamp = FileStamp::of(&path).map_err(|error| Problem::Unreadable {
        file: name.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(WeightFile { path, stamp, tensors: header.tensors.into() })
}

/// Weights in several files, listed in an index from tensors to files.
fn split_weights(folder: &Path, part: &str, index: &str) -> Result<Vec<WeightFile>, Problem> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let fail = |reason: String| Problem::Unreadable { file: index.to_owned(), reason };
    let Index { weight_map } = read_json(folder, index)?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    let mut files = Vec::new();
    let mut held: BTreeMap<String, &String> = BTreeMap::new();
    for name in names {
        if name.contains('/') || name.starts_with('.') || !name.ends_with(".safetensors") {
            return Err(fail(format!("`{name}` is not the name of a safetensors file beside it")));
        }
        let file = weight_file(folder, &format!("{part}/{name}"))?;
        for tensor in file.tensors.iter() {
            if let Some(other) = held.insert(tensor.name.clone(), name) {
                return Err(fail(format!("`{}` is in {other} and in {name}", tensor.name)));
            }
        }
        files.push(file);
    }
    match weight_map.iter().find(|(tensor, name)| held.get(*tensor) != Some(name)) {
        None => Ok(files),
        Some((tensor, name)) => Err(fail(format!("`{tensor}` is not in {name}"))),
    }
}

fn tokenizer_is_there(folder: &Path) -> Result<(), Problem> {
    let has = |name: &str| folder.join("tokenizer").join(name).is_file();
    if has("tokenizer.json") || has("vocab.json") && has("merges.txt") {
        return Ok(());
    }
    let file = if has("vocab.json") { "tokenizer/merges.txt" } else { "tokenizer/vocab.json" };
    Err(Problem::Missing { file: file.to_owned() })
}

fn scheduler(folder: &Path, class: &str) -> Result<SchedulerConfig, Problem> {
    let written: Map<String, Value> = read_json(folder, "scheduler/scheduler_config.json")?;
    let class = written.get("_class_name").and_then(Value::as_str).unwrap_or(class).to_owned();
    let config = written.into_iter().filter(|(key, _)| !key.starts_with('_')).collect();
    Ok(SchedulerConfig { class, config })
}

fn check(
    folder: &Path,
    components: &[Component],
) -> Result<stable_diffusion::StableDiffusion, Problem> {
    let unet: UnetConfig = read_json(folder, "unet/config.json")?;
    let vae: VaeConfig = read_json(folder, "vae/config.json")?;
    let text: TextConfig = read_json(folder, "text_encoder/config.json")?;
    let tensors: Vec<(String, Vec<Tensor>)> = ["unet", "vae", "text_encoder"]
        .into_iter()
        .map(|name| {
            let component = components.iter().find(|component| component.name == name);
            let tensors = component.map(|c| c.tensors().cloned().collect()).unwrap_or_default();
            let file = component.and_then(|c| c.files.first());
            let file = file.map_or_else(String::new, |file| file_name(&file.path));
            (format!("{name}/{file}"), tensors)
        })
        .collect();
    let weights = |at: usize| Weights { file: &tensors[at].0, tensors: &tensors[at].1 };
    stable_diffusion::check((&unet, weights(0)), (&vae, weights(1)), (&text, weights(2)))
}

impl FileStamp {
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let metadata = files::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            bytes: metadata.len(),
            modified_ns: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
            inode: metadata.ino(),
        })
    }
}
