//! Processing: the durable queue and the attempts at each job.
//!
//! The store is the truth; the queue in memory is a window on it, and a claim is a guarded write, so a job that was
//! cancelled or finished meanwhile is never started. One task owns the queue ([`actor`]); each running job has a task of
//! its own ([`attempt`]) that waits for the worker, so that cancel never waits behind what it cancels.
//!
//! ```text
//! submit ─▶ queued ─claim─▶ running ─finalise─▶ succeeded | failed | cancelled      (one of them, once)
//!              ▲               │
//!              └── requeue ────┘  worker lost: the attempt is closed with its cause, a new one begins
//! ```
//!
//! It never draws and never encodes: what a request means in steps comes from a [`Planner`], what pixels become comes from
//! a [`Finisher`]; both are implemented above and injected by the node.

mod actor;
mod attempt;
mod error;
mod finish;
mod handle;
mod health;
mod live;
mod pace;
mod planner;
mod queue;
mod tally;

pub use finish::{Encoded, Finisher, PictureFacts, RawImage};
pub use handle::{NewRequest, ProcessingConfig, ProcessingHandle, Submission, Tools};
pub use live::StreamEvent;
pub use planner::{Placement, Plan, Planner};
