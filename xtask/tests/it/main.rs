//! The checks themselves: each lets this tree pass, and fails on a copy with a deliberate mistake in it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![allow(clippy::disallowed_methods, reason = "tests make and change files")]

mod config_schema;
mod drift;
