//! Finds uv, or fetches a private copy with pip. Mirrors, proxies and certificates are the user's own pip and uv
//! settings: we name no host.

use super::error::{from_command, from_tool};
use super::events::Step;
use super::lock::Lock;
use super::python::{Python, on_path, release};
use super::{EnvironmentError, disk, notice};
use crate::files;
use crate::worker::command::{Finished, Tool};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The oldest uv whose flags we use.
const MIN_UV: (u32, u32) = (0, 8);
const PROBE_LIMIT: Duration = Duration::from_secs(30);
const FETCH_LIMIT: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Uv {
    pub(super) version: String,
    pub(super) program: PathBuf,
    /// Whether it has to be fetched first.
    pub(super) absent: bool,
}

/// Where the private copy of the lock's uv lies or will lie.
pub(super) fn private_folder(envs: &Path, lock: &Lock) -> PathBuf {
    envs.join(format!("uv-{}", lock.uv_version()))
}

/// The user's uv if it is new enough, else the private one, which may have to be fetched.
pub(super) async fn find(path: &OsStr, envs: &Path, lock: &Lock) -> Uv {
    for program in on_path("uv", path) {
        if let Some(version) = ask(&program, path).await
            && release(&version) >= MIN_UV
        {
            return Uv { version, program, absent: false };
        }
    }
    let (version, program) = (lock.uv_version(), private_folder(envs, lock).join("bin/uv"));
    let there = program.exists() && ask(&program, path).await.as_ref() == Some(&version);
    Uv { version, program, absent: !there }
}

/// A uv that does not run is as good as none.
async fn ask(program: &Path, path: &OsStr) -> Option<String> {
    let tool = Tool::new(program, PROBE_LIMIT).args(["--version"]).env("PATH", path);
    version(&tool.run().await.ok()?)
}

/// `uv 0.13.9 (x86_64-unknown-linux-gnu)` → `0.13.9`.
fn version(finished: &Finished) -> Option<String> {
    let words = finished.stdout.strip_prefix("uv ").filter(|_| finished.status.success())?;
    words.split_whitespace().next().map(str::to_string)
}

/// Puts the lock's uv into its private folder, whole or not at all.
pub(super) async fn fetch(
    python: &Python,
    path: &OsStr,
    envs: &Path,
    lock: &Lock,
    lock_file: &File,
) -> Result<(), EnvironmentError> {
    let folder = private_folder(envs, lock);
    let part = envs.join(format!(".part-uv-{}", lock.uv_version()));
    let run = async |program: &Path, args: &[&OsStr]| {
        let finished = Tool::new(program, FETCH_LIMIT)
            .args(args)
            .env("PATH", path)
            .without_env(&["PYTHONPATH", "PYTHONHOME"])
            .current_dir(envs)
            .holding(lock_file)?
            .run()
            .await
            .map_err(|error| from_command(Step::Uv, error))?;
        if finished.status.success() {
            return Ok(());
        }
        Err(from_tool(Step::Uv, "pip", &finished, || {
            (envs.to_path_buf(), notice::MARGIN, disk::free_bytes(envs).unwrap_or_default())
        }))
    };
    let requirements = part.join("requirements.txt");
    run(
        &python.executable,
        &["-I", "-m", "venv"]
            .map(OsStr::new)
            .into_iter()
            .chain([part.as_os_str()])
            .collect::<Vec<_>>(),
    )
    .await?;
    files::write_atomic(&requirements, lock.installer.as_bytes())?;
    let install = ["-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"];
    let pinned = ["--only-binary", ":all:", "--require-hashes", "--requirement"];
    let args = install.iter().chain(&pinned).map(OsStr::new).chain([requirements.as_os_str()]);
    run(&part.join("bin/python"), &args.collect::<Vec<_>>()).await?;
    if folder.exists() {
        files::remove_dir_all(&folder)?; // one that does not run, or it would have been used
    }
    files::rename(&part, &folder)?;
    Ok(())
}
