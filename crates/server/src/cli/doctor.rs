//! `atelier doctor`: looks at what a node needs and says what is missing, each finding with its fix. Changes nothing.

use super::Context;
use super::render::plain;
use super::worker::block_on;
use crate::serve::{lock, node_file};
use atelier_engine::clock::Clock;
use atelier_engine::device::{DeviceHandle, Nvidia, TorchBuild, Usable, system_sources};
use atelier_engine::files;
use atelier_engine::model::{ModelConfig, ModelHandle};
use atelier_engine::worker::environment::{EnvironmentState, InstallOptions, Plan};
use atelier_protocol::{Bytes, ErrorBody, ErrorCode};
use serde::Serialize;
use std::net::TcpListener;
use std::path::Path;

/// Below this much free space pictures and the store soon have no room.
const LITTLE_SPACE: Bytes = Bytes::gib(1);

/// How a look at one thing came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Good,
    /// It works, but not as well as it could.
    Note,
    /// Pictures cannot be made until this is mended.
    Bad,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn good(what: &'static str, seen: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Good, seen: seen.into(), fix: None }
    }
    fn note(what: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Note, seen: seen.into(), fix: Some(fix.into()) }
    }
    fn bad(what: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Bad, seen: seen.into(), fix: Some(fix.into()) }
    }
}

pub(super) fn run(context: &Context) -> Result<(), ErrorBody> {
    let mut findings = vec![data_folder(context), disk(context)];
    findings.push(address(context));
    findings.extend(block_on(devices(context))?);
    findings.push(block_on(environment(context))?);
    findings.extend(block_on(models(context))?);
    let bad = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    context.output.answer(&findings, |findings| findings.iter().map(text).collect())?;
    if bad == 0 {
        return Ok(());
    }
    let message = match bad {
        1 => "one thing must be mended before pictures can be made".to_owned(),
        n => format!("{n} things must be mended before pictures can be made"),
    };
    let hint = "the fix beside each finding, then `atelier doctor` again";
    Err(ErrorBody::new(ErrorCode::ConfigInvalid, message).with_hint(hint))
}

fn text(finding: &Finding) -> String {
    let mark = match finding.verdict {
        Verdict::Good => "ok  ",
        Verdict::Note => "note",
        Verdict::Bad => "BAD ",
    };
    let mut text = format!("{mark}  {:<12} {}\n", finding.what, plain(&finding.seen));
    if let Some(fix) = &finding.fix {
        text.push_str(&format!("{:19}fix: {}\n", "", plain(fix)));
    }
    text
}

fn data_folder(context: &Context) -> Finding {
    let data = &context.settings.config.data;
    let probe = data.join(".doctor");
    let tried = files::create_private_dir(data).and_then(|()| {
        files::write_atomic(&probe, b"")?;
        files::remove_file(&probe)
    });
    match tried {
        Ok(()) => Finding::good("data", format!("{} can be written", data.display())),
        Err(error) => Finding::bad(
            "data",
            error.to_string(),
            "make the folder writable for this user, or name another with `--data` or `ATELIER_DATA`",
        ),
    }
}

fn disk(context: &Context) -> Finding {
    let data = &context.settings.config.data;
    match free_space(data) {
        Some(free) if free < LITTLE_SPACE => Finding::bad(
            "disk",
            format!("{free} free at {}", data.display()),
            "free some space, or move the data folder with `ATELIER_DATA`",
        ),
        Some(free) => Finding::good("disk", format!("{free} free at {}", data.display())),
        None => Finding::note(
            "disk",
            format!("the free space at {} cannot be asked for", data.display()),
            "look at it with `df`",
        ),
    }
}

fn free_space(path: &Path) -> Option<Bytes> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some(Bytes(stat.f_bavail.saturating_mul(stat.f_frsize)))
}

fn address(context: &Context) -> Finding {
    let config = &context.settings.config;
    if lock::is_held(&config.data) {
        let seen = match node_file::read(&config.data) {
            Some(file) => {
                format!("a node serves this data folder at {} (pid {})", file.address, file.pid)
            }
            None => "a node of this data folder is starting or ending".to_owned(),
        };
        return Finding::good("node", seen);
    }
    match TcpListener::bind(config.listen) {
        Ok(_) => Finding::good("node", format!("none runs; {} is free", config.listen)),
        Err(error) => Finding::note(
            "node",
            format!("{} cannot be listened on: {error}", config.listen),
            "stop the program that holds it, or choose another with `listen` or `serve --listen`",
        ),
    }
}

async fn devices(context: &Context) -> Vec<Finding> {
    let config = &context.settings.config;
    let own = config.python.is_none() && config.worker_command.is_none();
    let torch = if own { TorchBuild::Locked } else { TorchBuild::Foreign };
    let handle = DeviceHandle::start(system_sources(&Nvidia::default()), torch).await;
    let view = handle.view();
    let mut findings: Vec<_> = view
        .devices
        .iter()
        .map(|device| {
            let memory = device.memory.map(|bytes| format!(", {bytes}")).unwrap_or_default();
            let seen = format!("{}: {}{memory}", device.id, device.name);
            match &device.usable {
                Usable::Yes => Finding::good("device", seen),
                Usable::No(why) => Finding::note(
                    "device",
                    format!("{seen}; not used because {why}"),
                    "another driver, or a PyTorch for this card through `ATELIER_PYTHON`",
                ),
            }
        })
        .collect();
    for finding in view.findings.iter() {
        findings.push(Finding::note(
            "device",
            finding.clone(),
            "if a card is missing, look at its driver with `nvidia-smi`",
        ));
    }
    findings
}

async fn environment(context: &Context) -> Finding {
    let what = "worker";
    let config = &context.settings.config;
    if let Some(command) = &config.worker_command {
        return Finding::good(what, format!("another program: {}", command.join(" ")));
    }
    let environments = config.node(None).environments();
    let info = environments.info().await;
    match info.state {
        EnvironmentState::Ready => {
            let torch = info.versions.get("torch").map(String::as_str).unwrap_or("?");
            Finding::good(
                what,
                format!("environment with PyTorch {torch} in {}", info.envs.display()),
            )
        }
        EnvironmentState::External if info.problems.is_empty() => {
            Finding::good(what, "your own interpreter has what is needed")
        }
        EnvironmentState::External => Finding::bad(
            what,
            info.problems.join("; "),
            "install what is missing, or unset `ATELIER_PYTHON`",
        ),
        EnvironmentState::Busy => Finding::note(what, "it is being installed", "wait"),
        EnvironmentState::Absent | EnvironmentState::Interrupted => {
            match environments.plan(&[], InstallOptions::default()).await {
                Ok(Plan::Install(notice)) if !notice.fits() => Finding::bad(
                    what,
                    format!("not installed; {} needed, {} free", notice.needed, notice.free),
                    "free space, or point `ATELIER_ENVS` at a larger disk",
                ),
                Ok(_) => Finding::note(
                    what,
                    "not installed yet",
                    "`atelier worker install`, or leave it to the first picture",
                ),
                Err(error) => {
                    let body = ErrorBody::from(error);
                    Finding::bad(what, body.message, body.hint)
                }
            }
        }
    }
}

async fn models(context: &Context) -> Vec<Finding> {
    let config = context.settings.config.node(std::env::current_exe().ok().as_deref());
    let folders = std::iter::once(config.data.join("models")).chain(config.model_folders);
    let folders: Vec<_> = folders.filter(|folder| folder.exists()).collect();
    let mut findings: Vec<_> = folders
        .iter()
        .filter_map(|folder| files::read_dir(folder).err())
        .map(|error| {
            Finding::bad("models", error.to_string(), "make the folder readable for this user")
        })
        .collect();
    let models = ModelHandle::start(
        ModelConfig { folders, default_model: config.default_model },
        Clock::system(),
    );
    match models.scan().await {
        Ok(_) => match models.resolve(None) {
            Ok(model) => findings.push(Finding::good(
                "models",
                format!("{} usable; default {}", models.view().models.len(), model.id),
            )),
            Err(error) => {
                let body = ErrorBody::from(error);
                findings.push(Finding::bad("models", body.message, body.hint));
            }
        },
        Err(error) => {
            let body = ErrorBody::from(error);
            findings.push(Finding::bad("models", body.message, body.hint));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_shown_with_its_fix() {
        let finding = Finding::bad("disk", "10 MiB free", "free some space");
        assert_eq!(
            text(&finding),
            "BAD   disk         10 MiB free\n                   fix: free some space\n"
        );
    }

    #[test]
    fn free_space_is_that_of_the_nearest_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_space(&folder.path().join("not/yet")).is_some());
    }
}
