//! Gives every model its id, and models to those who ask by name. Holds no channel and reads
//! nothing, so every rule here is a plain test.

use super::diffusers::Examined;
use super::{Model, ModelError, UnusableModel};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Digits of a hash that count as a name.
const MIN_HASH_DIGITS: usize = 10;
/// Names worth suggesting are at least so similar, of 1.
const SIMILAR: f64 = 0.6;
const SUGGESTIONS: usize = 3;

/// All models of one scan, sorted by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Catalog {
    pub(super) models: Vec<Arc<Model>>,
    pub(super) unusable: Vec<Arc<UnusableModel>>,
}

impl Catalog {
    pub(super) fn new(examined: Vec<Examined>) -> Self {
        let names: Vec<(String, &Path)> =
            examined.iter().map(|e| (e.stem.clone(), e.path.as_path())).collect();
        let ids = unique_ids(&names);
        let mut catalog = Self::default();
        for (examined, id) in examined.into_iter().zip(ids) {
            let Examined { path, stem, format, bytes, created, outcome } = examined;
            match outcome {
                Ok(mut model) => {
                    model.id = id;
                    catalog.models.push(Arc::new(*model));
                }
                Err(problem) => catalog.unusable.push(Arc::new(UnusableModel {
                    id,
                    title: stem,
                    path,
                    format,
                    bytes,
                    created,
                    problem,
                })),
            }
        }
        catalog.models.sort_by(|a, b| a.id.cmp(&b.id));
        catalog.unusable.sort_by(|a, b| a.id.cmp(&b.id));
        catalog
    }
}

/// Letters, digits, dots and underscores in lower case; runs of anything else become one hyphen.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.to_lowercase().chars() {
        if c.is_ascii_alphanumeric() || c == '.' || c == '_' {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_matches(['-', '.']);
    if slug.is_empty() { "model".to_owned() } else { slug.to_owned() }
}

/// One id each, in the same order. Models of the same name are all called after their parent folder
/// as well, so that none of them silently answers for the others; what is still the same gets a
/// number, in the order of the paths.
fn unique_ids(names: &[(String, &Path)]) -> Vec<String> {
    let mut ids: Vec<String> = names.iter().map(|(name, _)| slug(name)).collect();
    for index in clashes(&ids) {
        let parent = names[index].1.parent().and_then(Path::file_name).unwrap_or_default();
        ids[index] = format!("{}--{}", slug(&parent.to_string_lossy()), ids[index]);
    }
    let mut still = clashes(&ids);
    still.sort_by_key(|index| names[*index].1);
    let mut taken: BTreeSet<String> = ids.iter().cloned().collect();
    for index in still {
        let mut number = 1;
        let free = loop {
            let candidate = format!("{}-{number}", ids[index]);
            if taken.insert(candidate.clone()) {
                break candidate;
            }
            number += 1;
        };
        ids[index] = free;
    }
    ids
}

fn clashes(ids: &[String]) -> Vec<usize> {
    let mut count: BTreeMap<&String, u32> = BTreeMap::new();
    for id in ids {
        *count.entry(id).or_default() += 1;
    }
    (0..ids.len()).filter(|index| count[&ids[*index]] > 1).collect()
}

/// Who is looked for in the catalogue: a model of either list under all its names.
struct Named<'a> {
    id: &'a str,
    stem: String,
    title: &'a str,
    hash: Option<&'a str>,
    outcome: Result<&'a Arc<Model>, &'a UnusableModel>,
}

/// Finds a model by id, folder or file name, title (also as `title [hash]`), or hash prefix, in
/// this order. Usable models go before unusable ones of the same name.
pub(super) fn resolve(
    models: &[Arc<Model>],
    unusable: &[Arc<UnusableModel>],
    hashes: &BTreeMap<String, String>,
    asked: &str,
) -> Result<Arc<Model>, ModelError> {
    let stem = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let usable = models.iter().map(|model| Named {
        id: &model.id,
        stem: stem(&model.folder),
        title: &model.title,
        hash: hashes.get(&model.id).map(String::as_str),
        outcome: Ok(model),
    });
    let others = unusable.iter().map(|model| Named {
        id: &model.id,
        stem: stem(&model.path),
        title: &model.title,
        hash: None,
        outcome: Err(model),
    });
    let all: Vec<Named<'_>> = usable.chain(others).collect();

    let name = asked.trim();
    // The form in which a widespread web interface writes titles: `name.safetensors [1a2b3c4d5e]`.
    let bare = name.strip_suffix(']').and_then(|n| n.rsplit_once(" [")).map_or(name, |(n, _)| n);
    let same = |a: &str| a.eq_ignore_ascii_case(name) || a.eq_ignore_ascii_case(bare);
    let is_hash = name.len() >= MIN_HASH_DIGITS && name.chars().all(|c| c.is_ascii_hexdigit());
    let hash = name.to_ascii_lowercase();
    let rules: [&dyn Fn(&Named<'_>) -> bool; 4] = [
        &|m| m.id == name,
        &|m| same(&m.stem) || m.stem.rsplit_once('.').is_some_and(|(stem, _)| same(stem)),
        &|m| same(m.title) || same(m.id),
        &|m| is_hash && m.hash.is_some_and(|h| h.starts_with(&hash)),
    ];
    for rule in rules {
        let found: Vec<&Named<'_>> = all.iter().filter(|named| rule(named)).collect();
        let ready: Vec<&Arc<Model>> = found.iter().filter_map(|named| named.outcome.ok()).collect();
        match (ready.as_slice(), found.as_slice()) {
            ([one], _) => return Ok(Arc::clone(one)),
            ([], []) => {}
            ([], [one]) => {
                return one.outcome.map(Arc::clone).map_err(|model| ModelError::Unusable {
                    id: model.id.clone(),
                    problem: Box::new(model.problem.clone()),
                });
            }
            ([], several) => return Err(ambiguous(asked, several.iter().map(|named| named.id))),
            (several, _) => return Err(ambiguous(asked, several.iter().map(|m| m.id.as_str()))),
        }
    }
    Err(ModelError::NotFound { name: asked.to_owned(), nearest: nearest(&all, name) })
}

fn ambiguous<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> ModelError {
    ModelError::Ambiguous {
        name: name.to_owned(),
        candidates: candidates.map(str::to_owned).collect(),
    }
}

fn nearest(all: &[Named<'_>], name: &str) -> Vec<String> {
    let name = name.to_lowercase();
    let mut scored: Vec<(f64, &str)> = all
        .iter()
        .map(|named| {
            let score = [named.id, named.title, named.stem.as_str()]
                .into_iter()
                .map(|other| strsim::normalized_damerau_levenshtein(&name, &other.to_lowercase()))
                .fold(0.0, f64::max);
            (score, named.id)
        })
        .filter(|(score, _)| *score >= SIMILAR)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.into_iter().take(SUGGESTIONS).map(|(_, id)| id.to_owned()).collect()
}

/// The model for requests that name none: the newest that is not a toy, else the newest toy.
pub(super) fn default_of(models: &[Arc<Model>]) -> Option<Arc<Model>> {
    models
        .iter()
        .max_by(|a, b| {
            let rank = |m: &Model| (!m.card.fallback, m.created);
            rank(a).cmp(&rank(b)).then_with(|| b.id.cmp(&a.id))
        })
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::stable_diffusion::tests::demo;
    use crate::model::{Format, Problem, card};
    use atelier_protocol::{Bytes, ErrorCode};
    use serde_json::Map;
    use std::path::PathBuf;

    fn usable(path: &str, title: &str, created: i64, fallback: bool) -> Examined {
        let path = PathBuf::from(path);
        let stem = path.file_name().unwrap().to_string_lossy().into_owned();
        let scheduler =
            card::SchedulerConfig { class: "DDIMScheduler".to_owned(), config: Map::new() };
        let (_, mut card) = card::read(Path::new("/nowhere"), &demo(), scheduler).unwrap();
        card.fallback = fallback;
        let model = Model {
            id: String::new(),
            title: title.to_owned(),
            folder: path.clone(),
            format: Format::DiffusersFolder,
            family: crate::model::FAMILY,
            components: Vec::new(),
            bytes: Bytes(1),
            parameters: 1,
            created,
            card,
            facts: demo(),
        };
        let outcome = Ok(Box::new(model));
        Examined { path, stem, format: Format::DiffusersFolder, bytes: Bytes(1), created, outcome }
    }

    fn pickle(path: &str) -> Examined {
        let path = PathBuf::from(path);
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let outcome = Err(Problem::Pickle { file: stem.clone() });
        Examined { path, stem, format: Format::Pickle, bytes: Bytes(1), created: 9, outcome }
    }

    fn catalog() -> Catalog {
        Catalog::new(vec![
            usable("/m/diffusers/Dream Shaper", "Dream Shaper 8", 20, false),
            usable("/m/demo", "Atelier demo", 90, true),
            usable("/m/a/twin", "First twin", 10, false),
            usable("/m/b/twin", "Second twin", 10, false),
            pickle("/m/checkpoints/old.ckpt"),
            pickle("/m/checkpoints/demo.ckpt"),
            pickle("/m/x/gone.pt"),
            pickle("/m/y/gone.pt"),
        ])
    }

    #[test]
    fn ids_are_slugs_and_clashes_are_told_apart_by_their_parents() {
        let catalog = catalog();
        let models: Vec<&str> = catalog.models.iter().map(|m| m.id.as_str()).collect();
        assert_eq!(models, ["a--twin", "b--twin", "dream-shaper", "m--demo"]);
        let unusable: Vec<&str> = catalog.unusable.iter().map(|m| m.id.as_str()).collect();
        assert_eq!(unusable, ["checkpoints--demo", "old", "x--gone", "y--gone"]);
        for (name, id) in [("  Ünï cödé!!v1.5 ", "n-c-d-v1.5"), ("日本", "model"), ("..", "model")]
        {
            assert_eq!(slug(name), id, "{name}");
        }
        let same = [("a".to_owned(), Path::new("/2/p/a")), ("A".to_owned(), Path::new("/1/p/A"))];
        assert_eq!(unique_ids(&same), ["p--a-2", "p--a-1"]);
    }

    #[test]
    fn names_lead_to_models_or_to_a_useful_refusal() {
        let Catalog { models, unusable } = catalog();
        let hashes = BTreeMap::from([("dream-shaper".to_owned(), "0123456789abcdef".to_owned())]);
        let find = |name: &str| resolve(&models, &unusable, &hashes, name);
        for (name, id) in [
            ("dream-shaper", "dream-shaper"),
            ("Dream Shaper", "dream-shaper"),
            ("dream shaper 8", "dream-shaper"),
            ("Dream Shaper 8 [0123456789]", "dream-shaper"),
            ("0123456789AB", "dream-shaper"),
            ("second twin", "b--twin"),
            ("demo", "m--demo"), // the usable one of two
        ] {
            assert_eq!(find(name).expect(name).id, id, "{name}");
        }
        for (name, code, text) in [
            (
                "dream-shapr",
                ErrorCode::ModelNotFound,
                "no model is called `dream-shapr`; the nearest is dream-shaper",
            ),
            ("twins", ErrorCode::ModelNotFound, "no model is called `twins`"),
            ("zzz", ErrorCode::ModelNotFound, "no model is called `zzz`"),
            ("012345678", ErrorCode::ModelNotFound, "no model"),
            (
                "twin",
                ErrorCode::ModelAmbiguous,
                "`twin` fits more than one model: a--twin, b--twin",
            ),
            ("gone", ErrorCode::ModelAmbiguous, "x--gone, y--gone"),
            (
                "old",
                ErrorCode::ModelUnsupported,
                "the model old cannot be used: old is a pickle file",
            ),
            ("old.ckpt", ErrorCode::ModelUnsupported, "cannot be used"),
        ] {
            let error = find(name).expect_err(name);
            assert_eq!(error.code(), code, "{name}");
            assert!(error.to_string().contains(text), "{name}: {error}");
        }
    }

    #[test]
    fn the_default_is_the_newest_model_that_is_no_toy() {
        let Catalog { models, .. } = catalog();
        assert_eq!(default_of(&models).unwrap().id, "dream-shaper");
        let toys: Vec<_> = models.into_iter().filter(|m| m.card.fallback).collect();
        assert_eq!(default_of(&toys).unwrap().id, "m--demo");
        assert_eq!(default_of(&[]), None);
    }
}
