//! What an environment is made of: the pinned requirements and the figures measured for them. Pure data.
//!
//! The requirements name versions and hashes but no host, so they install through any mirror.

use crate::worker::environment::notice::CardFacts;
use atelier_protocol::Bytes;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Minor versions of Python 3 that the requirements were resolved for.
pub(super) const PYTHON_MINORS: std::ops::RangeInclusive<u32> = 11..=13;

/// What a worker cannot do without. The rest of the lock is what these need.
pub(super) const NEEDED: [&str; 7] =
    ["torch", "diffusers", "transformers", "msgspec", "google-crc32c", "safetensors", "numpy"];

/// The oldest torch that an interpreter of the user's may bring.
pub(super) const MIN_TORCH: (u32, u32) = (2, 11);

/// Figures measured for one set of requirements, `worker/environment.json`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Facts {
    /// Year and month of the measurement.
    pub(super) measured: String,
    /// The torch that was measured.
    pub(super) torch: String,
    pub(super) torch_build: String,
    /// Sum of the wheels' sizes.
    pub(super) download_bytes: Bytes,
    /// Allocated blocks of the finished environment, bytecode included.
    pub(super) installed_bytes: Bytes,
    /// The oldest card that the build has code for.
    pub(super) min_compute_capability: (u32, u32),
    /// The oldest major version of the NVIDIA driver that runs it.
    pub(super) min_driver: u32,
}

/// The pinned requirements of the workers.
#[derive(Clone, Debug)]
pub(super) struct Lock {
    pub(super) requirements: Cow<'static, str>,
    /// Requirements of the installer itself, for machines without one.
    pub(super) installer: Cow<'static, str>,
    pub(super) facts: Facts,
    pub(super) blake3: String,
}

impl Lock {
    /// The lock that this binary was built with.
    pub(super) fn embedded() -> Self {
        Self::new(
            include_str!("../../../../../worker/requirements.lock"),
            include_str!("../../../../../worker/installer.lock"),
            serde_json::from_str(include_str!("../../../../../worker/environment.json"))
                .expect("a test reads the same file"),
        )
    }
    pub(super) fn new(
        requirements: impl Into<Cow<'static, str>>,
        installer: impl Into<Cow<'static, str>>,
        facts: Facts,
    ) -> Self {
        let requirements = requirements.into();
        let blake3 = blake3::hash(requirements.as_bytes()).to_hex().to_string();
        Self { requirements, installer: installer.into(), facts, blake3 }
    }
    /// The folder name of an environment. Bytecode and wheels differ between Python versions, and what uv writes may
    /// differ between its versions, so both are part of it.
    pub(super) fn environment_name(&self, python_minor: u32, uv_version: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [&*self.requirements, &format!("3.{python_minor}"), uv_version] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..16].to_string()
    }
    /// Version of the uv that is fetched where there is none.
    pub(super) fn uv_version(&self) -> String {
        pins(&self.installer)
            .remove("uv")
            .and_then(|versions| versions.into_iter().next())
            .expect("the installer's requirements pin uv")
    }
    /// Pinned versions of what a worker needs. There may be two of one package, for different versions of Python.
    pub(super) fn needed(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut pins = pins(&self.requirements);
        pins.retain(|name, _| NEEDED.contains(&name.as_str()));
        pins
    }
    /// One sentence for every card that the locked torch cannot use.
    pub(super) fn cards_left_out(&self, cards: &[CardFacts]) -> Vec<String> {
        let Facts { torch, min_compute_capability: (major, minor), min_driver, .. } = &self.facts;
        let way_out = "It will be left out, unless `ATELIER_PYTHON` names an interpreter with a \
                       PyTorch that supports it.";
        let mut sentences = Vec::new();
        for card in cards {
            let (name, has) = (&card.name, card.compute_capability);
            if has < (*major, *minor) {
                sentences.push(format!(
                    "{name} (compute capability {}.{}) is older than PyTorch {torch} supports \
                     ({major}.{minor}). {way_out}",
                    has.0, has.1,
                ));
            } else if card.driver_major().is_some_and(|driver| driver < *min_driver) {
                sentences.push(format!(
                    "{name} has driver {}, PyTorch {torch} needs {min_driver} or newer: update the \
                     driver. {way_out}",
                    card.driver,
                ));
            }
        }
        sentences
    }
}

/// Package names and versions in a requirements file. Markers are not evaluated.
fn pins(requirements: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut pins: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in requirements.lines().filter(|line| !line.starts_with([' ', '#'])) {
        if let Some((name, rest)) = line.split_once("==") {
            let version = rest.split([' ', ';', '\\']).next().unwrap_or_default();
            pins.entry(name.trim().to_lowercase()).or_default().insert(version.to_string());
        }
    }
    pins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_lock_pins_all_that_a_worker_needs_and_was_measured() {
        let lock = Lock::embedded();
        assert_eq!(lock.needed().len(), NEEDED.len(), "{:?}", lock.needed());
        assert!(
            lock.needed()["torch"].contains(&lock.facts.torch),
            "torch changed: measure download and installation again (worker/environment.json)"
        );
        assert!(lock.uv_version().split('.').count() == 3);
    }

    #[test]
    fn every_requirement_is_pinned_by_hash_and_no_host_is_named() {
        for text in [Lock::embedded().requirements, Lock::embedded().installer] {
            let names = text.lines().filter(|l| !l.starts_with([' ', '#'])).collect::<Vec<_>>();
            assert!(names.iter().all(|line| line.contains("==")), "{names:?}");
            assert!(text.contains("--hash=sha256:"));
            assert!(!text.contains("://") && !text.contains("index-url"), "a host is named");
        }
    }

    #[test]
    fn another_lock_python_or_uv_is_another_environment() {
        let facts = Lock::embedded().facts;
        let one = Lock::new("a==1", "uv==0.9.0", facts.clone());
        let two = Lock::new("a==2", "uv==0.9.0", facts);
        let names = BTreeSet::from([
            one.environment_name(11, "0.9.0"),
            one.environment_name(12, "0.9.0"),
            one.environment_name(11, "0.9.1"),
            two.environment_name(11, "0.9.0"),
        ]);
        assert_eq!(names.len(), 4);
        assert!(names.iter().all(|name| name.len() == 16));
    }

    #[test]
    fn old_cards_and_old_drivers_are_told_before_the_download() {
        let card = |capability, driver: &str| CardFacts {
            name: "card".into(),
            compute_capability: capability,
            driver: driver.into(),
        };
        let lock = Lock::embedded();
        assert_eq!(lock.cards_left_out(&[card((7, 5), "580.65.06")]), Vec::<String>::new());
        let told =
            lock.cards_left_out(&[card((6, 1), "580.65.06"), card((9, 0), "550.54.15")]).join("\n");
        assert!(told.contains("compute capability 6.1"), "{told}");
        assert!(told.contains("driver 550.54.15"), "{told}");
        assert_eq!(told.matches("ATELIER_PYTHON").count(), 2, "{told}");
    }
}
