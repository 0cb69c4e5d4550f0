//! Tests of the engine as a whole: rules of its structure, real worker processes, whole nodes without HTTP.

mod architecture;
mod node;
mod supervisor;
