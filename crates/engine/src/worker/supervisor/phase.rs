//! How long a run may be silent, by what it is busy with. A value; the caller brings messages and the time.

use atelier_protocol::worker::Phase;
use std::time::Duration;
use tokio::time::Instant;

/// Longest silences, by phase. Compiling is declared by the worker and may hold its interpreter for long.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PhaseLimits {
    pub encode: Duration,
    /// One denoise step while nothing is learned about it.
    pub unlearned_step: Duration,
    /// One denoise step at least, whatever was learned.
    pub least_step: Duration,
    /// So many times the learned time of a step.
    pub step_factor: u32,
    pub compile: Duration,
    pub decode: Duration,
}

impl Default for PhaseLimits {
    fn default() -> Self {
        Self {
            encode: Duration::from_secs(60),
            unlearned_step: Duration::from_secs(60),
            least_step: Duration::from_secs(5),
            step_factor: 8,
            compile: Duration::from_secs(600),
            decode: Duration::from_secs(60),
        }
    }
}

/// Where a run is and when it must next give a sign of life.
#[derive(Clone, Debug)]
pub(super) struct RunClock {
    limits: PhaseLimits,
    learned_step: Option<Duration>,
    pub(super) phase: Phase,
    pub(super) step: u32,
    pub(super) deadline: Instant,
}

impl RunClock {
    pub(super) fn start(limits: PhaseLimits, learned_step: Option<Duration>, now: Instant) -> Self {
        let deadline = now + limits.encode;
        Self { limits, learned_step, phase: Phase::Encode, step: 0, deadline }
    }

    /// A sign of life that names no phase.
    pub(super) fn alive(&mut self, now: Instant) {
        self.deadline = now + self.limit();
    }

    /// `step` units of `steps` in this phase are behind us; 0 declares that the phase begins.
    pub(super) fn progress(&mut self, phase: Phase, step: u32, steps: u32, now: Instant) {
        self.phase = if step < steps || step == 0 { phase } else { after(phase) };
        if phase == Phase::Denoise {
            self.step = step;
        }
        self.alive(now);
    }

    fn limit(&self) -> Duration {
        match self.phase {
            Phase::Load | Phase::Encode => self.limits.encode,
            Phase::Compile => self.limits.compile,
            Phase::Denoise => self.learned_step.map_or(self.limits.unlearned_step, |learned| {
                self.limits.least_step.max(learned * self.limits.step_factor)
            }),
            Phase::Decode => self.limits.decode,
        }
    }

    /// The limit in force, for messages.
    pub(super) fn silence_s(&self) -> f64 {
        self.limit().as_secs_f64()
    }
}

/// What follows when a phase has done its last unit.
fn after(phase: Phase) -> Phase {
    match phase {
        Phase::Load | Phase::Compile => Phase::Encode,
        Phase::Encode => Phase::Denoise,
        Phase::Denoise | Phase::Decode => Phase::Decode,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(learned_ms: Option<u64>) -> (RunClock, Instant) {
        let now = Instant::now();
        (RunClock::start(PhaseLimits::default(), learned_ms.map(Duration::from_millis), now), now)
    }

    #[tokio::test]
    async fn a_step_may_take_eight_times_what_was_learned_and_five_seconds_at_least() {
        for (learned, limit) in [(None, 60), (Some(100), 5), (Some(2_000), 16)] {
            let (mut clock, now) = clock(learned);
            clock.progress(Phase::Encode, 1, 1, now);
            assert_eq!(clock.phase, Phase::Denoise);
            assert_eq!(clock.deadline, now + Duration::from_secs(limit));
        }
    }

    #[tokio::test]
    async fn compiling_is_declared_and_has_a_limit_of_its_own() {
        let (mut clock, now) = clock(Some(100));
        clock.progress(Phase::Compile, 0, 1, now);
        assert_eq!(clock.deadline, now + Duration::from_secs(600));
        clock.progress(Phase::Compile, 1, 1, now);
        assert_eq!(clock.phase, Phase::Encode);
    }

    #[tokio::test]
    async fn the_last_step_is_followed_by_decoding() {
        let (mut clock, now) = clock(Some(100));
        clock.progress(Phase::Denoise, 19, 20, now);
        assert_eq!((clock.phase, clock.step), (Phase::Denoise, 19));
        clock.progress(Phase::Denoise, 20, 20, now);
        assert_eq!((clock.phase, clock.step), (Phase::Decode, 20));
        assert_eq!(clock.deadline, now + Duration::from_secs(60));
    }
}
