//! The command line: flags in, one call, an answer in text or JSON, and the exit code of the error table.

mod client;
mod doctor;
mod facts;
mod follow;
mod generate;
mod interrupt;
mod jobs;
mod link;
mod output;
mod progress;
mod render;
mod sse;
mod worker;

use crate::config::Environment;
use crate::config::{self, Flags, LogConfig, NODE_VARIABLE, ProcessEnvironment, Settings};
use crate::{log, serve};
use atelier_protocol::ErrorBody;
use clap::{Args, CommandFactory, Parser, Subcommand};
use doctor::DoctorArgs;
use facts::{DevicesCommand, ModelsCommand};
use generate::GenerateArgs;
use jobs::JobsCommand;
use render::{Output, note};
use std::path::PathBuf;
use std::process::ExitCode;
use tracing::level_filters::LevelFilter;
use worker::WorkerCommand;

/// Makes images from text on this machine.
#[derive(Parser, Debug)]
#[command(name = "atelier", version, about, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone, Debug)]
struct Global {
    /// Folder of jobs, pictures in the store, models and logs [env: ATELIER_DATA]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    data: Option<PathBuf>,
    /// Talk to the node at this address [env: ATELIER_NODE] [default: the node of the data folder]
    #[arg(long, global = true, value_name = "URL", help_heading = "Everywhere")]
    node: Option<String>,
    /// Settings file [env: ATELIER_CONFIG] [default: atelier.toml in the data folder]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    config: Option<PathBuf>,
    /// Answer in JSON, for programs; long work tells each event as one line
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make pictures from a text
    ///
    /// Uses the node that serves the data folder, or starts one: from a terminal it stays for five idle
    /// minutes, so that the next picture takes seconds; otherwise it ends with the call. The paths of the
    /// pictures are the only thing on standard output.
    #[command(verbatim_doc_comment)]
    Generate(GenerateArgs),
    /// Run a node until it is told to end (Ctrl-C or SIGTERM)
    Serve(ServeArgs),
    /// List or show the devices of a running node
    Devices {
        #[command(subcommand)]
        command: Option<DevicesCommand>,
    },
    /// Show the memory of each device: total, promised, observed, free
    Memory,
    /// List or show models
    Models {
        #[command(subcommand)]
        command: Option<ModelsCommand>,
    },
    /// Show what can be asked for: schedulers, formats, limits
    Capabilities,
    /// List, show, watch or cancel jobs
    Jobs {
        #[command(subcommand)]
        command: JobsCommand,
    },
    /// Make, describe or prune the Python environment that workers run in
    Worker {
        #[command(subcommand)]
        command: WorkerCommand,
    },
    /// Look at this machine and say what is missing, each finding with its fix; changes nothing
    Doctor(DoctorArgs),
    /// Settings
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Args, Clone, Debug)]
struct ServeArgs {
    /// Loopback address and port to listen on; port 0 takes any free one [env: ATELIER_LISTEN]
    /// [default: 127.0.0.1:4280]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// End after this many seconds without work or requests; 0 is never [env: ATELIER_IDLE_EXIT_S]
    /// [default: 0]
    #[arg(long, value_name = "SECONDS")]
    idle_exit: Option<u64>,
    /// Start no worker before the first job
    #[arg(long)]
    no_warm_start: bool,
    /// Outlive the terminal; how `generate` starts a node
    #[arg(long, hide = true)]
    detached: bool,
}

#[derive(Subcommand, Clone, Debug)]
enum ConfigCommand {
    /// Show every setting with its meaning, its value and where the value was written
    Show,
}

/// What every command may use.
#[derive(Debug)]
struct Context {
    settings: Settings,
    /// `--config`, passed on to a node that is started.
    config_file: Option<PathBuf>,
    /// `--node`.
    node: Option<String>,
    output: Output,
}

/// The definition of the command line, for its reference.
#[must_use]
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Runs the command that this process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse(); // ends the process itself for help, version and usage errors (2)
    let output = Output { json: cli.global.json };
    match run(cli, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.code.row().exit)
        }
    }
}

fn run(cli: Cli, output: Output) -> Result<(), ErrorBody> {
    let Cli { global, command } = cli;
    let mut flags = Flags { config: global.config.clone(), ..Flags::default() };
    flags.raw.data = global.data;
    if let Command::Serve(args) = &command {
        flags.raw.listen.clone_from(&args.listen);
        flags.raw.idle_exit_s = args.idle_exit;
        flags.raw.warm_start = args.no_warm_start.then_some(false);
    }
    let settings = config::load(&flags, &ProcessEnvironment)?;
    start_log(&settings, &command);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let config_file = settings.file.clone().filter(|_| global.config.is_some());
    let node = global.node.or_else(|| ProcessEnvironment.var(NODE_VARIABLE));
    let context = Context { settings, config_file, node, output };
    match command {
        Command::Generate(args) => generate::run(&context, &args),
        Command::Serve(args) => {
            let manner = serve::Manner { json: output.json, detached: args.detached };
            serve::run(&context.settings.config, manner)
        }
        Command::Devices { command } => {
            facts::devices(&context, &command.unwrap_or(DevicesCommand::List))
        }
        Command::Memory => facts::memory(&context),
        Command::Models { command } => {
            facts::models(&context, &command.unwrap_or(ModelsCommand::List))
        }
        Command::Capabilities => facts::capabilities(&context),
        Command::Jobs { command } => jobs::run(&context, &command),
        Command::Worker { command } => worker::run(&context, &command),
        Command::Doctor(args) => doctor::run(&context, args),
        Command::Config { command: ConfigCommand::Show } => show_settings(&context),
    }
}

/// A node logs as it was told to; other commands answer their user and only warn, unless a level was chosen.
fn start_log(settings: &Settings, command: &Command) {
    let chosen = settings.config.log;
    let level = match command {
        Command::Serve(_) => chosen.level,
        _ if settings.is_chosen("log.level") => chosen.level,
        _ => LevelFilter::WARN,
    };
    log::start(LogConfig { level, ..chosen });
}

fn show_settings(context: &Context) -> Result<(), ErrorBody> {
    let settings = &context.settings;
    if context.output.json {
        return context.output.json(&settings.to_json());
    }
    match &settings.file {
        Some(file) => note(&format!("settings file: {}", file.display())),
        None => note("settings file: none"),
    }
    context.output.line(settings.to_text().trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_word_of_it_is_explained() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                let (name, of) = (argument.get_id(), command.get_name());
                assert!(argument.get_help().is_some(), "{name} of {of} has no help");
            }
            for inner in command.get_subcommands() {
                assert!(inner.get_about().is_some(), "{} has no help", inner.get_name());
                walk(inner);
            }
        }
        definition().debug_assert();
        walk(&definition());
    }

    #[test]
    fn flags_that_count_everywhere_may_stand_anywhere() {
        for words in [
            "atelier --json --data d jobs list",
            "atelier jobs --json list --data d",
            "atelier jobs list --data d --json",
        ] {
            let cli = Cli::try_parse_from(words.split(' ')).unwrap();
            assert!(cli.global.json && cli.global.data.is_some(), "{words}");
        }
    }
}
