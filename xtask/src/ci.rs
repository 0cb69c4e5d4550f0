//! What must hold before a change lands, in the order in which it fails fastest.

use crate::codegen::{self, Mode};
use crate::steps::{command, output, root, run};
use crate::tidy;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    Normal,
    Full,
}

/// Formatting, lints, generated files, documents.
pub fn check() -> Result<()> {
    run("format", command("cargo", &["fmt", "--all", "--check"]))?;
    codegen::run(&root(), Mode::Check)?;
    tidy::run(&root())?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    run("clippy", command("cargo", &clippy))
}

pub fn ci(extent: Extent) -> Result<()> {
    let started = Instant::now();
    check()?;
    run("build", command("cargo", &["build", "--workspace", "--all-targets"]))?;
    let envs = root().join("target/envs");
    let mut install = command(atelier(), &["worker", "install"]);
    install.env("ATELIER_ENVS", &envs);
    run("worker environment", install)?;
    python(&envs)?;
    let nextest = output(command("cargo", &["nextest", "--version"])).is_ok();
    let tests: &[&str] =
        if nextest { &["nextest", "run", "--workspace"] } else { &["test", "--workspace"] };
    let mut tests = command("cargo", tests);
    tests.env("ATELIER_ENVS", &envs);
    run("Rust tests and the whole node", tests)?;
    if extent == Extent::Full {
        for bench in ["startup", "demo"] {
            run(bench, command("python3", &[&format!("bench/{bench}/run.py")]))?;
        }
    }
    println!("\nall green in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn atelier() -> PathBuf {
    root().join("target/debug/atelier")
}

/// Lint, types, layers and tests of the worker, with the worker's own interpreter and a folder of tools beside it.
fn python(envs: &std::path::Path) -> Result<()> {
    let mut info = command(atelier(), &["worker", "info", "--json"]);
    info.env("ATELIER_ENVS", envs);
    let info: serde_json::Value = serde_json::from_str(&output(info)?)?;
    let interpreter = info["python"].as_str().context("the worker environment names no python")?;
    let tools = tools(interpreter)?;
    let worker = root().join("worker");
    let tool = |title: &str, program: &str, args: &[&str]| {
        let mut command = command(tools.join("bin").join(program), args);
        command.current_dir(&worker).env("PYTHONPATH", worker.join("src"));
        run(title, command)
    };
    tool("worker: ruff", "ruff", &["check", "."])?;
    tool("worker: format", "ruff", &["format", "--check", "."])?;
    tool("worker: mypy", "mypy", &[])?;
    tool("worker: layers", "lint-imports", &[])?;
    tool("worker: tests", "python", &["-m", "pytest", "-q"])
}

/// A virtual environment with the test tools that also sees the worker's packages; made again when its lock changes.
fn tools(interpreter: &str) -> Result<PathBuf> {
    let lock = root().join("worker/requirements-dev.lock");
    let wanted = format!("{interpreter}\n{}", std::fs::read_to_string(&lock)?);
    let folder = root().join("target/pytools");
    let stamp = folder.join("stamp");
    if std::fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        return Ok(folder);
    }
    let _ = std::fs::remove_dir_all(&folder); // it may not be there
    let folder_name = folder.display().to_string();
    run("worker: tools", command(interpreter, &["-m", "venv", &folder_name]))?;
    let python = folder.join("bin/python");
    let lock = lock.display().to_string();
    let install = ["-m", "pip", "install", "--quiet", "--require-hashes", "-r", &lock];
    run("worker: install tools", command(&python, &install))?;
    let site = |python: &str| {
        let print = "import sysconfig; print(sysconfig.get_path('purelib'))";
        output(command(python, &["-c", print]))
    };
    let own = PathBuf::from(site(&python.display().to_string())?.trim());
    std::fs::write(own.join("worker_environment.pth"), site(interpreter)?)?;
    std::fs::write(stamp, wanted)?;
    Ok(folder)
}
