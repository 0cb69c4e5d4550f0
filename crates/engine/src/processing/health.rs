//! What lost workers say about models and devices: which pairs are left alone for a while, and when they are tried again.
//! A value; the caller brings the time.
//!
//! ```text
//! closed ─3 losses in 60 s─▶ open ─time over, canary passes─▶ half-open ─a job succeeds─▶ closed
//!                             ▲                                  │
//!                             └──────── a loss, a failed canary ─┘   (twice as long as before)
//! ```
//!
//! A breaker belongs to (device, model), the component that was running. Two open ones quarantine the device: then it is
//! more likely the device than the models. Only losses that the worker is to blame for count: what was killed from outside
//! says nothing about what it was doing.

use atelier_protocol::DeviceId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HealthLimits {
    /// So many losses…
    pub(super) losses: usize,
    /// …within this time open a breaker.
    pub(super) window: Duration,
    /// How long a breaker stays open: at first, and at most.
    pub(super) open: (Duration, Duration),
    /// Open breakers on one device that quarantine it.
    pub(super) broken_models: usize,
}

impl Default for HealthLimits {
    fn default() -> Self {
        Self {
            losses: 3,
            window: Duration::from_secs(60),
            open: (Duration::from_secs(30), Duration::from_secs(600)),
            broken_models: 2,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Closed {
        losses: VecDeque<Instant>,
    },
    Open {
        until: Instant,
        times: u32,
    },
    /// Open, and a canary is on its way.
    Canary {
        times: u32,
    },
    /// One job may try.
    HalfOpen {
        times: u32,
        trying: bool,
    },
}

/// What is worth telling.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Opened { device: DeviceId, model: String, pause: Duration },
    Closed { device: DeviceId, model: String },
    Quarantined { device: DeviceId },
    Released { device: DeviceId },
}

/// What others may know: devices in quarantine, and until when a model is left alone on a device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct HealthView {
    pub(super) quarantined: Vec<DeviceId>,
    pub(super) open: BTreeMap<(DeviceId, String), Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Health {
    limits: HealthLimits,
    breakers: BTreeMap<(DeviceId, String), State>,
    quarantined: Vec<DeviceId>,
}

impl Health {
    pub(super) fn new(limits: HealthLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A worker was lost while it ran this model here, and is to blame.
    pub(super) fn lost(&mut self, device: &DeviceId, model: &str, now: Instant) -> Vec<Change> {
        let key = (device.clone(), model.to_owned());
        let state = self.breakers.entry(key).or_insert(State::Closed { losses: VecDeque::new() });
        let times = match state {
            State::Closed { losses } => {
                losses.push_back(now);
                while losses.front().is_some_and(|first| now - *first > self.limits.window) {
                    losses.pop_front();
                }
                (losses.len() >= self.limits.losses).then_some(1)
            }
            State::HalfOpen { times, .. } | State::Canary { times } => Some(*times + 1),
            State::Open { .. } => None,
        };
        match times {
            Some(times) => self.open(device, model, times, now),
            None => Vec::new(),
        }
    }

    fn open(&mut self, device: &DeviceId, model: &str, times: u32, now: Instant) -> Vec<Change> {
        let (first, longest) = self.limits.open;
        let pause = longest.min(first * 2_u32.saturating_pow(times - 1));
        let key = (device.clone(), model.to_owned());
        self.breakers.insert(key, State::Open { until: now + pause, times });
        let mut changes =
            vec![Change::Opened { device: device.clone(), model: model.to_owned(), pause }];
        let broken = self.breakers.iter().filter(|((at, _), state)| {
            at == device && matches!(state, State::Open { .. } | State::Canary { .. })
        });
        if broken.count() >= self.limits.broken_models && !self.quarantined.contains(device) {
            self.quarantined.push(device.clone());
            changes.push(Change::Quarantined { device: device.clone() });
        }
        changes
    }

    /// A job of this model was finished here.
    pub(super) fn succeeded(&mut self, device: &DeviceId, model: &str) -> Vec<Change> {
        let key = (device.clone(), model.to_owned());
        match self.breakers.remove(&key) {
            Some(State::HalfOpen { .. } | State::Canary { .. } | State::Open { .. }) => {
                vec![Change::Closed { device: device.clone(), model: model.to_owned() }]
            }
            Some(State::Closed { .. }) | None => Vec::new(),
        }
    }

    /// A job of this model ended here without saying anything about the model, such as by being cancelled.
    pub(super) fn undecided(&mut self, device: &DeviceId, model: &str) {
        let key = (device.clone(), model.to_owned());
        if let Some(State::HalfOpen { trying, .. }) = self.breakers.get_mut(&key) {
            *trying = false;
        }
    }

    /// Whether a job of this model may start here now.
    pub(super) fn allows(&self, device: &DeviceId, model: &str) -> bool {
        let key = (device.clone(), model.to_owned());
        let closed = match self.breakers.get(&key) {
            None | Some(State::Closed { .. } | State::HalfOpen { trying: false, .. }) => true,
            Some(State::Open { .. } | State::Canary { .. } | State::HalfOpen { .. }) => false,
        };
        closed && !self.quarantined.contains(device)
    }

    /// A job of this model starts here.
    pub(super) fn started(&mut self, device: &DeviceId, model: &str) {
        let key = (device.clone(), model.to_owned());
        if let Some(State::HalfOpen { trying, .. }) = self.breakers.get_mut(&key) {
            *trying = true;
        }
    }

    /// Devices on which some pause is over: a canary is due there. They are not named again until it has returned.
    pub(super) fn canaries_due(&mut self, now: Instant) -> Vec<DeviceId> {
        let mut due = Vec::new();
        for ((device, _), state) in &mut self.breakers {
            if let State::Open { until, times } = *state
                && until <= now
            {
                *state = State::Canary { times };
                if !due.contains(device) {
                    due.push(device.clone());
                }
            }
        }
        due
    }

    /// The canary's answer: the device works, or it does not.
    pub(super) fn canary_returned(
        &mut self,
        device: &DeviceId,
        alive: bool,
        now: Instant,
    ) -> Vec<Change> {
        let waiting = |((at, model), state): (&(DeviceId, String), &State)| match state {
            State::Canary { times } if at == device => Some((model.clone(), *times)),
            _ => None,
        };
        let waiting: Vec<_> = self.breakers.iter().filter_map(waiting).collect();
        let mut changes = Vec::new();
        for (model, times) in waiting {
            if alive {
                let key = (device.clone(), model);
                self.breakers.insert(key, State::HalfOpen { times, trying: false });
            } else {
                changes.extend(self.open(device, &model, times + 1, now));
            }
        }
        if alive && self.quarantined.contains(device) {
            self.quarantined.retain(|at| at != device);
            changes.push(Change::Released { device: device.clone() });
        }
        changes
    }

    /// When something is due next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let until = |state: &State| match state {
            State::Open { until, .. } => Some(*until),
            _ => None,
        };
        self.breakers.values().filter_map(until).min()
    }

    pub(super) fn view(&self) -> HealthView {
        let open = self.breakers.iter().filter_map(|(key, state)| match state {
            State::Open { until, .. } => Some((key.clone(), *until)),
            _ => None,
        });
        HealthView { quarantined: self.quarantined.clone(), open: open.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu() -> DeviceId {
        DeviceId::cpu()
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn opened(health: &mut Health, model: &str, now: Instant) {
        for _ in 0..2 {
            assert_eq!(health.lost(&cpu(), model, now), []);
        }
        assert!(!health.lost(&cpu(), model, now).is_empty());
    }

    #[tokio::test]
    async fn three_losses_in_a_minute_open_the_breaker_of_that_model_only() {
        let (mut health, now) = (Health::new(HealthLimits::default()), Instant::now());
        opened(&mut health, "bad", now);
        assert!(!health.allows(&cpu(), "bad"));
        assert!(health.allows(&cpu(), "good"));
        assert!(health.allows(&DeviceId("cuda:0".into()), "bad"));
    }

    #[tokio::test]
    async fn losses_far_apart_are_forgotten() {
        let (mut health, now) = (Health::new(HealthLimits::default()), Instant::now());
        for minute in 0..10 {
            assert_eq!(health.lost(&cpu(), "m", now + seconds(45 * minute)), []);
        }
        assert!(health.allows(&cpu(), "m"));
    }

    #[tokio::test]
    async fn a_canary_then_one_job_decide_whether_it_closes() {
        let (mut health, now) = (Health::new(HealthLimits::default()), Instant::now());
        opened(&mut health, "m", now);
        assert!(health.canaries_due(now + seconds(29)).is_empty());
        let later = now + seconds(30);
        assert_eq!(health.canaries_due(later), [cpu()]);
        assert!(health.canaries_due(later).is_empty(), "one canary at a time");
        assert!(!health.allows(&cpu(), "m"));
        health.canary_returned(&cpu(), true, later);
        assert!(health.allows(&cpu(), "m"));
        health.started(&cpu(), "m");
        assert!(!health.allows(&cpu(), "m"), "one job tries");
        assert_eq!(health.succeeded(&cpu(), "m").len(), 1);
        assert!(health.allows(&cpu(), "m"));
        assert_eq!(health.next_deadline(), None);
    }

    #[tokio::test]
    async fn a_loss_of_the_one_that_tried_doubles_the_pause() {
        let (mut health, now) = (Health::new(HealthLimits::default()), Instant::now());
        opened(&mut health, "m", now);
        let mut at = now;
        for pause in [30, 60, 120, 240, 480, 600, 600] {
            assert_eq!(health.next_deadline(), Some(at + seconds(pause)));
            at += seconds(pause);
            health.canaries_due(at);
            health.canary_returned(&cpu(), true, at);
            health.started(&cpu(), "m");
            health.lost(&cpu(), "m", at);
        }
    }

    #[tokio::test]
    async fn a_cancelled_trial_lets_the_next_one_try() {
        let (mut health, now) = (Health::new(HealthLimits::default()), Instant::now());
        opened(&mut health, "m", now);
        health.canaries_due(now + seconds(30));
        health.canary_returned(&cpu(), true, now + seconds(30));
        health.started(&cpu(), "m");
        health.undecided(&cpu(), "m");
        assert!(health.allows(&cpu(), "m"));
    }

    #[tokio::test]
    async fn two_broken_models_quarantine_the_device_until_a_canary_passes() {
        let (mut health, now) = (Health::new(HealthLimits::default()), Instant::now());
        opened(&mut health, "a", now);
        opened(&mut health, "b", now);
        assert_eq!(health.view().quarantined, [cpu()]);
        assert!(!health.allows(&cpu(), "c"), "no model runs on a device in quarantine");
        let later = now + seconds(30);
        assert_eq!(health.canaries_due(later), [cpu()]);
        health.canary_returned(&cpu(), false, later);
        assert!(!health.allows(&cpu(), "c"));
        let later = later + seconds(60);
        assert_eq!(health.canaries_due(later), [cpu()]);
        let changes = health.canary_returned(&cpu(), true, later);
        assert_eq!(changes, [Change::Released { device: cpu() }]);
        assert!(health.allows(&cpu(), "c"));
    }
}
