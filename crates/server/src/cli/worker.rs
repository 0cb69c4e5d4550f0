//! `atelier worker`: the Python environment that workers run in. Works without a node; a node installs by itself at the
//! first need.

use super::Context;
use super::render::{note, pairs, plain};
use atelier_engine::node::cards;
use atelier_engine::worker::environment::{
    EnvironmentInfo, EnvironmentState, Environments, InstallEvent, InstallOptions, Notice, Plan,
};
use atelier_protocol::{ErrorBody, ErrorCode};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::future::Future;
use std::io::{self, IsTerminal};
use tokio::sync::mpsc;

#[derive(Subcommand, Clone, Debug)]
pub(super) enum WorkerCommand {
    /// Install the environment; does nothing when it is there
    Install {
        /// Install again, and compare every file with its recorded hash
        #[arg(long)]
        repair: bool,
        /// Say what would be downloaded and how much space it takes; touch nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show where the environment is, its versions and its size
    Info,
    /// Remove what this version of Atelier does not use
    Prune {
        /// Remove the environment in use as well
        #[arg(long)]
        all: bool,
    },
}

pub(super) fn run(context: &Context, command: &WorkerCommand) -> Result<(), ErrorBody> {
    let environments = environments(context);
    match *command {
        WorkerCommand::Install { repair, dry_run } => {
            let options = InstallOptions { repair };
            if dry_run {
                block_on(plan(context, &environments, options))?
            } else {
                block_on(install(context, &environments, options))?
            }
        }
        WorkerCommand::Info => {
            let info = block_on(environments.info())?;
            context.output.answer(&info, describe)
        }
        WorkerCommand::Prune { all } => {
            let pruned = block_on(environments.prune(!all))?.map_err(ErrorBody::from)?;
            context.output.answer(&pruned, |pruned| {
                let names = pruned.removed.iter().map(|held| format!("removed {}\n", held.name));
                let names: String = names.collect();
                format!("{names}{} removed, {} freed", pruned.bytes, pruned.freed)
            })
        }
    }
}

fn environments(context: &Context) -> Environments {
    context.settings.config.node(None).environments()
}

/// What the next job would have to install first, if anything; only when it is this machine's node that would do it.
pub(super) fn installation_ahead(context: &Context) -> Result<Option<Box<Notice>>, ErrorBody> {
    let config = &context.settings.config;
    let foreign = config.worker_command.is_some() || config.python.is_some();
    let environments = environments(context);
    if context.node.is_some() || foreign || environments.ready().is_some() {
        return Ok(None);
    }
    let plan =
        block_on(async { environments.plan(&cards().await, InstallOptions::default()).await })?;
    match plan? {
        Plan::Ready { .. } => Ok(None),
        Plan::Install(notice) => Ok(Some(notice)),
    }
}

async fn plan(
    context: &Context,
    environments: &Environments,
    options: InstallOptions,
) -> Result<(), ErrorBody> {
    match environments.plan(&cards().await, options).await? {
        Plan::Ready { python, python_version } => {
            let answer =
                json!({"install": false, "python": python, "python_version": python_version});
            context.output.answer(&answer, |_| {
                format!("nothing to install: {} ({python_version})", python.display())
            })
        }
        Plan::Install(notice) => {
            let answer = json!({"install": true, "notice": notice});
            context.output.answer(&answer, |_| notice.to_string())
        }
    }
}

async fn install(
    context: &Context,
    environments: &Environments,
    options: InstallOptions,
) -> Result<(), ErrorBody> {
    let (events, installing) = mpsc::channel(64);
    let json = context.output.json;
    let shown = tokio::spawn(show(installing, json));
    let interpreter = environments.ensure(&cards().await, options, events).await;
    let _ = shown.await; // it ends with its channel
    let interpreter = interpreter?;
    context.output.answer(&interpreter, |interpreter| {
        format!("ready: {} ({})", interpreter.python.display(), interpreter.python_version)
    })
}

/// What goes on, on stderr: a bar on a terminal, a line for each step elsewhere.
async fn show(mut events: mpsc::Receiver<InstallEvent>, json: bool) {
    let bar = (!json && io::stderr().is_terminal()).then(|| {
        let bar = ProgressBar::hidden();
        let style = "{bar:32} {bytes}/{total_bytes} {msg} {elapsed}";
        bar.set_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        bar
    });
    let say = |text: &str| match &bar {
        _ if json => {}
        Some(bar) => bar.suspend(|| note(text)),
        None => note(text),
    };
    let mut told = 0;
    while let Some(event) = events.recv().await {
        match event {
            InstallEvent::Notice(notice) => say(&notice.to_string()),
            InstallEvent::Step(step) => match &bar {
                Some(bar) => bar.set_message(step.to_string()),
                None => say(&format!("… {step}")),
            },
            InstallEvent::Bytes { done, total } => match &bar {
                Some(bar) => {
                    bar.set_length(total.0);
                    bar.set_position(done.0);
                }
                None => {
                    let tenth = done.0 * 10 / total.0.max(1);
                    if tenth > told {
                        told = tenth;
                        say(&format!("… {done} of {total}"));
                    }
                }
            },
            InstallEvent::Done { seconds, bytes, .. } => {
                say(&format!("installed {bytes} in {seconds:.0} s"));
            }
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn describe(info: &EnvironmentInfo) -> String {
    let state = match info.state {
        EnvironmentState::Ready => "ready",
        EnvironmentState::Absent => {
            "not installed; `atelier worker install` or the first picture does it"
        }
        EnvironmentState::Interrupted => "interrupted; the next installation repairs it",
        EnvironmentState::Busy => "another process is installing or removing",
        EnvironmentState::External => "your own interpreter (ATELIER_PYTHON)",
    };
    let text = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    };
    let versions: Vec<_> = info.versions.iter().map(|(name, v)| format!("{name} {v}")).collect();
    let mut out = pairs(&[
        ("State", state.to_owned()),
        ("Python", text(&info.python)),
        ("Version", info.python_version.clone().unwrap_or_default()),
        ("Packages", versions.join(", ")),
        ("Size", info.bytes.map(|bytes| bytes.to_string()).unwrap_or_default()),
        ("Installed", info.installed_at.clone().unwrap_or_default()),
        ("Folder", info.envs.display().to_string()),
    ]);
    for problem in &info.problems {
        out.push_str(&format!("Problem: {}\n", plain(problem)));
    }
    for other in &info.others {
        let name = plain(&other.name);
        out.push_str(&format!("Unused: {name}, {} (`atelier worker prune`)\n", other.bytes));
    }
    out
}

/// Commands without a node need a runtime for a moment.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, ErrorBody> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        ErrorBody::new(ErrorCode::Internal, format!("failed to start the runtime: {error}"))
    })?;
    Ok(runtime.block_on(work))
}
