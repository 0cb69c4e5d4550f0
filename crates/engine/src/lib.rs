//! The machine: six domains, the worker supervisor and the store. Runs without HTTP and without a terminal.
//!
//! Calls go down, events go up: `device ← memory ← model ← processing ← inference ← postprocessing`. A domain may call any
//! domain left of it and none right of it (`tests/it/architecture.rs` holds that). [`node::Node`] is the composition root,
//! the one place that names them all, and the whole surface that a face needs.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "Atelier runs on Linux x86-64 with a CPU or an NVIDIA card; other systems are not supported yet."
);

pub mod clock;
pub mod files;

pub mod store;
pub mod worker;

pub mod device;
pub mod memory;
pub mod model;

pub mod processing;

pub mod inference;

pub mod postprocessing;

pub mod node;
