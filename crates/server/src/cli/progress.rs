//! Shows how a job is doing: a bar on a terminal, a line for each change elsewhere, a JSON line for each event for
//! programs.

use super::render::{Output, note, plain};
use super::sse::Received;
use atelier_protocol::Detail;
use atelier_protocol::http::{JobState, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::time::Duration;

/// Between two lines of the same phase lie this many percent.
const LINE_PERCENT: f64 = 25.0;
const TICK: Duration = Duration::from_millis(120);

/// What is shown of a job's events.
pub(super) struct Display {
    form: Form,
    warned: BTreeSet<String>,
}

enum Form {
    Json(Output),
    Bar(ProgressBar),
    Lines { phase: String, percent: f64 },
}

impl Display {
    pub(super) fn new(output: Output) -> Self {
        let form = if output.json {
            Form::Json(output)
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            bar.set_style(spinner());
            bar.enable_steady_tick(TICK);
            Form::Bar(bar)
        } else {
            Form::Lines { phase: String::new(), percent: 0.0 }
        };
        Self { form, warned: BTreeSet::new() }
    }

    /// What happens before the job's first event; too short for a line that stays.
    pub(super) fn before(&mut self, text: &str) {
        if let Form::Bar(_) = &self.form {
            self.show(text, &Progress::default());
        }
    }

    pub(super) fn event(&mut self, event: &Received) {
        if let Form::Json(output) = &self.form {
            let mut line = json!({ "event": event.event, "data": event.data });
            if let (Some(id), Value::Object(fields)) = (event.id, &mut line) {
                fields.insert("id".to_owned(), id.into());
            }
            let _ = output.json(&line); // a full disk shows itself when the picture is saved
            return;
        }
        match event.event.as_str() {
            "progress" => {
                if let Ok(progress) = serde_json::from_value::<Progress>(event.data.clone()) {
                    let text = text_of(&progress);
                    self.show(&text, &progress);
                }
            }
            "state" => {
                let state = event.data.get("state").and_then(Value::as_str).unwrap_or_default();
                if state == JobState::Queued.word() {
                    self.show("waiting", &Progress::default());
                }
            }
            "warning" => {
                let text = |name| event.data.get(name).and_then(Value::as_str).unwrap_or_default();
                self.warning(&Detail::new(text("field"), text("message")));
            }
            _ => {} // pictures and the end are the command's own to tell
        }
    }

    /// Shows a warning once.
    pub(super) fn warning(&mut self, warning: &Detail) {
        if self.warned.insert(format!("{}\n{}", warning.field, warning.message)) {
            self.note(&format!("Warning: {}", plain(&warning.message)));
        }
    }

    /// A line that stays.
    pub(super) fn note(&self, text: &str) {
        match &self.form {
            Form::Json(_) => {}
            Form::Bar(bar) => bar.suspend(|| note(text)),
            Form::Lines { .. } => note(text),
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }

    fn show(&mut self, text: &str, progress: &Progress) {
        match &mut self.form {
            Form::Json(_) => {}
            Form::Bar(bar) => {
                match (progress.step, progress.steps) {
                    (Some(step), Some(steps)) if steps > 0 => {
                        bar.set_style(steps_bar());
                        bar.set_length(steps.into());
                        bar.set_position(step.into());
                    }
                    _ => bar.set_style(spinner()),
                }
                bar.set_message(plain(text));
            }
            Form::Lines { phase, percent } => {
                let now = percent_of(progress);
                if *phase == text && now < *percent + LINE_PERCENT {
                    return;
                }
                text.clone_into(phase);
                *percent = now;
                note(&line(text, progress));
            }
        }
    }
}

/// Of the job where that is known, else of the steps of the phase.
fn percent_of(progress: &Progress) -> f64 {
    progress.percent.unwrap_or_else(|| match (progress.step, progress.steps) {
        (Some(step), Some(steps)) if steps > 0 => 100.0 * f64::from(step) / f64::from(steps),
        _ => 0.0,
    })
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn steps_bar() -> ProgressStyle {
    ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// What a job is doing, without its numbers.
fn text_of(progress: &Progress) -> String {
    match (progress.phase.as_deref(), progress.queue_position) {
        (None, Some(0)) => "waiting, next in line".to_owned(),
        (None, Some(ahead)) => format!("waiting, {ahead} ahead"),
        (None, None) => "working".to_owned(),
        (Some("install"), _) => "installing the worker environment (MiB)".to_owned(),
        (Some("starting"), _) => "starting the worker".to_owned(),
        (Some("load"), _) => "loading the model".to_owned(),
        (Some("encode"), _) => "reading the prompt".to_owned(),
        (Some("denoise"), _) => "drawing".to_owned(),
        (Some("decode"), _) => "decoding".to_owned(),
        (Some("save"), _) => "saving".to_owned(),
        (Some(other), _) => other.to_owned(),
    }
}

fn line(text: &str, progress: &Progress) -> String {
    let text = plain(text);
    match (progress.step, progress.steps, progress.percent) {
        (Some(step), Some(steps), _) if step > 0 => format!("{text}, {step} of {steps}"),
        (_, _, Some(percent)) if percent > 0.0 => format!("{text}, {percent:.0} %"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_the_phase_and_what_is_known_of_it() {
        let progress = |phase: Option<&str>| Progress {
            phase: phase.map(str::to_owned),
            ..Progress::default()
        };
        assert_eq!(text_of(&progress(Some("denoise"))), "drawing");
        assert_eq!(text_of(&progress(Some("installing torch"))), "installing torch");
        let waiting = Progress { queue_position: Some(2), ..Progress::default() };
        assert_eq!(text_of(&waiting), "waiting, 2 ahead");
        let drawing = Progress { step: Some(5), steps: Some(20), ..Progress::default() };
        assert_eq!(line("drawing", &drawing), "drawing, 5 of 20");
        let installing = Progress { percent: Some(41.7), ..Progress::default() };
        assert_eq!(line("installing", &installing), "installing, 42 %");
        assert_eq!(line("saving", &Progress::default()), "saving");
    }
}
