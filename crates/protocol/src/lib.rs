//! The words: everything that crosses a process boundary.
//!
//! Ids, units, the one error table, the messages of the worker protocol and the bodies of the HTTP API. Plain data with
//! no behaviour beyond checks: no runtime, no I/O, no clock. Other processes and other languages read this crate, so a
//! change here is a change of contract: run `cargo xtask codegen` after it.

pub mod error_code;
pub mod http;
pub mod ids;
pub mod units;
pub mod worker;

pub use error_code::{Detail, ErrorBody, ErrorCode, Retry};
pub use ids::{ArtifactId, DeviceId, JobId, RunId};
pub use units::Bytes;
