//! The project's own commands, as functions over the folder of a source tree: so that the tests of this crate can show,
//! on a copy with a deliberate mistake, that each check fails.
#![expect(clippy::print_stdout, reason = "a command-line tool")]
#![expect(
    clippy::disallowed_methods,
    reason = "runs the project's tools and writes its generated files"
)]

pub mod ci;
pub mod codegen;
pub mod error_codes;
pub mod operations;
pub mod protocol_page;
mod steps;
pub mod tidy;

pub use steps::root;
