//! `atelier doctor`: looks at everything that a node needs and says what is missing, each finding with its fix.
//!
//! Changes nothing: nothing is installed, no folder is made, no file is written. What a finding says was seen just now,
//! not remembered; the worker is started for real, and ended again.

mod devices;
mod finding;
mod folders;
mod machine;
mod models;
mod node;
mod store;
mod worker;

use super::Context;
use super::worker::block_on;
use atelier_engine::clock::Clock;
use atelier_protocol::{ErrorBody, ErrorCode};
use clap::Args;
use finding::{Finding, Verdict};

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct DoctorArgs {
    /// Start no worker to see whether one starts, which takes some seconds and 0.8 GiB of memory
    #[arg(long)]
    no_worker_start: bool,
}

pub(super) fn run(context: &Context, args: DoctorArgs) -> Result<(), ErrorBody> {
    let findings = block_on(look(context, args))?;
    let bad = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    context.output.answer(&findings, |findings| findings.iter().map(Finding::text).collect())?;
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

/// From the ground up: the machine, its devices, the folders, what lies in them, the node, the worker.
async fn look(context: &Context, args: DoctorArgs) -> Vec<Finding> {
    let config = &context.settings.config;
    let mut findings = Vec::new();
    findings.push(machine::cores_and_memory());
    findings.push(machine::shared_memory());
    findings.push(machine::clock(&Clock::system(), &config.data));
    findings.extend(devices::look(config).await);
    findings.push(folders::data(&config.data));
    findings.extend(folders::disks(config));
    findings.push(store::look(&config.data));
    findings.extend(models::look(config).await);
    findings.push(node::look(config));
    findings.extend(worker::look(config, args).await);
    findings
}
