//! Memory: a ledger of bytes promised and bytes observed, per device and for the RAM of the
//! machine.
//!
//! Owns every promise of memory that this node makes. A [`Reservation`] is a promise; it ends when
//! it is dropped. Between the two it may be *settled*: its owner has taken the bytes, so that the
//! system's own figures contain them.
//!
//! ```text
//! reserve ─▶ promised ─settle─▶ settled
//!                └──────drop──────┴────▶ released
//! ```
//!
//! Free memory is the smaller of two figures, less a margin, and every refusal shows the
//! arithmetic:
//!
//! - what nobody was promised: `total − promised`, so that two loads that start together never both
//!   see the same bytes;
//! - what the system reports as available, less promises not yet settled, which the report cannot
//!   contain: so that other programs on the machine count too.
//!
//! Never allocates, evicts or asks a worker anything.

mod actor;
mod error;
mod handle;
mod ledger;
mod observer;
mod view;

pub use error::MemoryError;
pub use handle::{MemoryHandle, Reservation};
pub use ledger::{Arithmetic, Limit};
pub use observer::{Observation, Observer, ObserverError, SystemObserver};
pub use view::{Allocation, AllocationId, MemoryRow, MemoryView, Owner, Pressure};
