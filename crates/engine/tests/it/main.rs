//! Tests of the engine as a whole: rules of its structure, real worker processes, whole nodes without HTTP.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![allow(clippy::disallowed_methods, reason = "tests start programs and write files")]

mod architecture;
mod node;
mod supervisor;
