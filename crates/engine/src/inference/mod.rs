//! Inference: what may be asked for, and what it means in steps of a worker.
//!
//! Functions behind a handle, no task of its own: [`Inference`] checks a request against the catalogue ([`Inference::resolve`],
//! every problem at once) and turns a resolved one into a plan. Submit, validate and dispatch all come through here, so a
//! dry run cannot lie. Never talks to a worker and never touches the disk.

mod check;
mod fields;
mod planner;
mod scheduler;

pub use check::{Inference, Limits, Resolved};
pub use scheduler::{SCHEDULERS, Scheduler};

/// The name of a scheduler as other programs' metadata writes it.
#[must_use]
pub fn title_of(name: &str) -> String {
    Scheduler::find(name).map_or_else(|| name.to_owned(), |row| row.title.to_owned())
}
