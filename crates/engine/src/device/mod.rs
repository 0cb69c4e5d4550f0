//! Device: what hardware is here and what it can do.
//!
//! Owns the list of devices and their ids (`cpu`, `cuda:0`, …): found at start and at every
//! [`DeviceHandle::rescan`] by asking each [`Source`], numbered and judged by a pure inventory,
//! published with a generation number. A source that fails never fails the discovery: it becomes a
//! finding that `doctor` and the log show. A value that nobody measured is absent.
//!
//! Never starts a worker, never touches a device, and knows nothing of how full a device is: that
//! is memory's.

mod actor;
mod cpu;
mod error;
mod handle;
mod host;
mod inventory;
mod nvml;
mod source;
mod view;

pub use cpu::CpuSource;
pub use error::DeviceError;
pub use handle::{DeviceHandle, system_sources};
pub use host::HostMemory;
pub use inventory::supported_by_locked_torch;
pub use nvml::{CardMemory, Nvidia, NvidiaSource};
pub use source::{Found, Source, SourceError};
pub use view::{Device, DeviceKind, DeviceView, TorchBuild, Usable};
