//! The worker supervisor.

mod command;
pub mod environment;
