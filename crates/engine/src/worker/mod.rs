//! The worker supervisor: owns the processes that do the machine learning, and nothing that they compute.
//!
//! One actor a worker (see [`supervisor`]); the node holds one worker a device in a [`Workers`] pool. A worker holds
//! nothing that commands cannot rebuild, so any of them may be killed at any moment: whoever waits on it is told at once,
//! a new **epoch** begins with the next one, and whatever was resident in the old one is forgotten.
//!
//! ```text
//! Absent ─start─▶ Starting ─hello, welcome, ready──▶ Ready ─shutdown─▶ Draining ─exit─▶ Absent
//!                    │ time out, other protocol        │ exit, deadline, bad lines
//!                    ▼                                 ▼
//!                 Failed(reason) ◀─ too often ─ Lost(reason) ─back-off─▶ Starting
//! ```

mod command;
pub mod environment;
mod evidence;
mod launch;
mod oom;
mod pool;
mod process;
mod slot;
mod supervisor;
mod view;
mod wire;

pub use evidence::{Blame, ExitCause, Loss, StderrTail};
pub use launch::{Launcher, Preparation, StartProgress};
pub use pool::Workers;
pub use process::{Connection, Control, ProcessSpawner, Spawner, WorkerCommand};
pub use slot::{SlotClaim, SlotError, SlotFile};
pub use supervisor::{PhaseLimits, RunEvent, SupervisorConfig, WorkerHandle};
pub use view::{WorkerState, WorkerView};
pub use wire::{Decoded, LineDecoder};
