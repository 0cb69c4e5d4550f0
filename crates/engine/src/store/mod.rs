//! The job store: one SQLite file that remembers what cannot be rebuilt — jobs, attempts, outputs, events, settings.
//!
//! It owns the database and the folder of output files ([`ArtifactFiles`]). It never decides what should run, never waits
//! for a worker and never reads the clock: times come in as text, decisions come in as operations, and each operation is
//! guarded by what is stored, so that a late or doubled call changes nothing.
//!
//! ```text
//!            submit            claim                finalise
//!   (nothing) ─────▶ queued ─────────▶ running ───────────────▶ succeeded | failed | cancelled
//!                      │  ◀───────────────┘                          ▲
//!                      │   requeue, recover (attempt closed)         │
//!                      └─────────────────────────────────────────────┘
//!                        request_cancel
//! ```
//!
//! How failure leaves each state: a node that dies leaves jobs `running` under its boot id; [`Store::recover`] closes
//! those attempts as `lost` and puts the jobs back in their old place. A change that belongs to an attempt names it, and
//! is answered with `Stale` once the job has moved on; so work may be done twice but counts once.
//!
//! One thread owns the writing connection (`writer.rs`); an answer is given only after the commit that holds the change.
//! Reads go to a few read-only connections and see every change that was answered before they began.

mod artifact_files;
mod database;
mod error;
mod handle;
mod inspect;
mod jobs;
mod queries;
mod readers;
mod rows;
mod settings;
#[cfg(test)]
mod tests;
mod types;
mod writer;

pub use artifact_files::{ArtifactFiles, StoredFile};
pub use error::StoreError;
pub use handle::{Identity, Integrity, Store};
pub use inspect::{StoreReport, inspect};
pub use types::{
    Assigned, AttemptOutcome, CancelOutcome, Claim, Counts, EndState, Ending, Finalised,
    Idempotency, NewArtifact, NewJob, QueuedJob, Recovered, Requeued, StoredArtifact, StoredEvent,
    StoredJob, Submitted, artifact_url,
};
