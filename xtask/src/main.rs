//! The project's own commands: `cargo xtask ci`, `check`, `codegen`, `tidy`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use anyhow::{Result, bail};
use std::process::ExitCode;
use xtask::codegen::Mode;
use xtask::{ci, codegen, root, tidy};

const HELP: &str = "\
cargo xtask COMMAND

  ci [--full]        everything that must hold before a change lands: check, the worker environment, all tests in Rust
                     and Python, the demo model end to end; --full adds the benchmarks
  check              formatting, clippy, generated files, documents: the quick part, without tests
  codegen [--check]  write what is generated from the Rust types and tables, or compare it
  tidy               what documents, the table of operations and the tests say of each other is true
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["ci"] => ci::ci(ci::Extent::Normal),
        ["ci", "--full"] => ci::ci(ci::Extent::Full),
        ["check"] => ci::check(),
        ["codegen"] => codegen::run(&root(), Mode::Write),
        ["codegen", "--check"] => codegen::run(&root(), Mode::Check),
        ["tidy"] => tidy::run(&root()),
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(())
        }
        other => bail!("unknown command `{}`\n\n{HELP}", other.join(" ")),
    }
}
