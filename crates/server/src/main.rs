//! The `atelier` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    atelier_server::cli::main()
}
