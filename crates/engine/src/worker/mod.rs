//! The worker supervisor.

pub mod environment;
