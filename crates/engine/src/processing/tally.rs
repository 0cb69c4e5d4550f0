//! How far a job is, from the messages of its runs. A value; the caller brings the messages.

use atelier_protocol::http::{Progress, Timings};
use atelier_protocol::worker::{Phase, RunTimings};

/// Counts steps over all pictures of a job and what each phase cost.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    steps_per_picture: u32,
    pictures: u32,
    done_pictures: u32,
    /// Sum and number of the step times seen.
    step_ms: (f64, u32),
    pub(super) timings: Timings,
}

impl Tally {
    pub(super) fn new(steps_per_picture: u32, pictures: u32, done_pictures: u32) -> Self {
        Self {
            steps_per_picture,
            pictures,
            done_pictures,
            step_ms: (0.0, 0),
            timings: Timings::default(),
        }
    }

    /// One `progress` message of the current picture.
    pub(super) fn on_progress(&mut self, phase: Phase, step: u32, step_ms: f64) -> Progress {
        let within = match phase {
            Phase::Load | Phase::Encode | Phase::Compile => 0,
            Phase::Denoise => {
                self.step_ms.0 += step_ms;
                self.step_ms.1 += 1;
                step.min(self.steps_per_picture)
            }
            Phase::Decode => self.steps_per_picture,
        };
        self.at(phase.word(), within)
    }

    /// The current picture is being written.
    pub(super) fn saving(&self) -> Progress {
        self.at("save", self.steps_per_picture)
    }

    fn at(&self, phase: &str, within: u32) -> Progress {
        let done = self.done_pictures * self.steps_per_picture + within;
        let all = self.pictures * self.steps_per_picture;
        let (sum, count) = self.step_ms;
        let left = f64::from(all - done.min(all));
        Progress {
            phase: Some(phase.to_owned()),
            step: Some(done),
            steps: Some(all),
            percent: Some(tenth(100.0 * f64::from(done) / f64::from(all.max(1)))),
            eta_s: (count > 0).then(|| tenth(left * sum / f64::from(count) / 1000.0)),
            queue_position: None,
        }
    }

    pub(super) fn picture_done(&mut self, run: RunTimings, post_ms: f64) {
        self.done_pictures += 1;
        let add = |sum: &mut Option<f64>, ms: f64| *sum = Some(tenth(sum.unwrap_or(0.0) + ms));
        add(&mut self.timings.encode_ms, run.encode_ms);
        add(&mut self.timings.denoise_ms, run.denoise_ms);
        add(&mut self.timings.decode_ms, run.decode_ms);
        add(&mut self.timings.post_ms, post_ms);
    }
}

/// One digit behind the point: what a person or a plot can use.
pub(super) fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_over_all_pictures_and_only_gives_a_time_once_a_step_was_seen() {
        let mut tally = Tally::new(10, 2, 0);
        let at = tally.on_progress(Phase::Encode, 1, 5.0);
        assert_eq!((at.step, at.steps, at.eta_s), (Some(0), Some(20), None));
        let at = tally.on_progress(Phase::Denoise, 5, 100.0);
        assert_eq!((at.step, at.percent, at.eta_s), (Some(5), Some(25.0), Some(1.5)));
        tally.picture_done(RunTimings { encode_ms: 1.0, denoise_ms: 2.0, decode_ms: 3.0 }, 4.0);
        let at = tally.on_progress(Phase::Denoise, 5, 100.0);
        assert_eq!((at.step, at.percent), (Some(15), Some(75.0)));
        assert_eq!(tally.saving().step, Some(20));
    }

    #[test]
    fn a_worker_that_counts_too_far_does_not_make_more_than_all() {
        let mut tally = Tally::new(10, 1, 0);
        assert_eq!(tally.on_progress(Phase::Denoise, 99, 1.0).percent, Some(100.0));
    }
}
