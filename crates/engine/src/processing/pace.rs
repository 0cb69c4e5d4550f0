//! What a denoise step takes, by device, model and size: learned from every step, remembered over restarts. It says how
//! long silence may last before a worker counts as hung.

use crate::store::Store;
use atelier_protocol::DeviceId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Weight of the newest step in the running mean.
const NEWEST: f64 = 0.1;

/// Shared between attempts; the lock is held for a map access and never across a wait.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<String, f64>>);

pub(super) fn key(device: &DeviceId, model: &str, width: u32, height: u32) -> String {
    format!("pace/{device}/{model}/{width}x{height}")
}

impl Pace {
    /// Milliseconds a step, if anything is known.
    pub(super) async fn learned(&self, store: &Store, key: &str) -> Option<Duration> {
        if let Some(ms) = self.get(key) {
            return Duration::try_from_secs_f64(ms / 1000.0).ok();
        }
        let stored = store.setting(key).await.ok().flatten()?.as_f64()?;
        self.lock().insert(key.to_owned(), stored);
        Duration::try_from_secs_f64(stored / 1000.0).ok()
    }

    pub(super) fn step(&self, key: &str, ms: f64) {
        if !ms.is_finite() || ms <= 0.0 {
            return; // a worker may say what it likes
        }
        let mut all = self.lock();
        match all.get_mut(key) {
            Some(mean) => *mean += NEWEST * (ms - *mean),
            None => drop(all.insert(key.to_owned(), ms)),
        }
    }

    /// Remembers what was learned. Losing it costs patience and nothing else.
    pub(super) async fn keep(&self, store: &Store, key: &str) {
        if let Some(ms) = self.get(key)
            && let Err(error) = store.set_setting(key, ms.into()).await
        {
            tracing::warn!("a learned step time was not stored: {error}");
        }
    }

    fn get(&self, key: &str) -> Option<f64> {
        self.lock().get(key).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, f64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_mean_follows_slowly_and_nonsense_is_ignored() {
        let pace = Pace::default();
        for ms in [100.0, f64::NAN, -5.0, 0.0] {
            pace.step("k", ms);
        }
        assert_eq!(pace.get("k"), Some(100.0));
        pace.step("k", 200.0);
        assert_eq!(pace.get("k"), Some(110.0));
        assert_eq!(pace.get("other"), None);
    }
}
