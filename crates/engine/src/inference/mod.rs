//! Inference: what may be asked for, and what it means in steps of a worker.
//!
//! Functions behind a handle, no task of its own: [`Inference`] checks a request against the catalogue ([`Inference::resolve`],
//! every problem at once) and turns a resolved one into a plan. Submit, validate and dispatch all come through here, so a
//! dry run cannot lie. Never talks to a worker and never touches the disk.

mod check;
mod fields;
mod planner;
mod scheduler;

pub use check::{Inference, KINDS, Limits, Resolved};
pub use scheduler::{SCHEDULERS, Scheduler};

/// Sampler and schedule type of a scheduler, as other programs' metadata writes them.
#[must_use]
pub fn titles_of(name: &str) -> (String, Option<String>) {
    match Scheduler::find(name) {
        Some(row) => match row.title.strip_suffix(" Karras") {
            Some(sampler) => (sampler.to_owned(), Some("Karras".to_owned())),
            None => (row.title.to_owned(), None),
        },
        None => (name.to_owned(), None),
    }
}
