//! Tests of the engine as a whole: rules of its structure, real worker processes, whole nodes without HTTP.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod architecture;
mod node;
mod supervisor;
