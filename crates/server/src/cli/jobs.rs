//! `atelier jobs`: list, show, watch, cancel.

use super::Context;
use super::follow::follow;
use super::interrupt::Interrupt;
use super::link::Link;
use super::progress::Display;
use super::render::{Table, pairs, plain, shortened};
use atelier_protocol::http::{Job, JobState, List};
use atelier_protocol::{ErrorBody, ErrorCode, JobId};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

#[derive(Subcommand, Clone, Debug)]
pub(super) enum JobsCommand {
    /// List jobs, newest first
    List(ListArgs),
    /// Show one job with its request, attempts, pictures and timings
    Show {
        /// Id of the job
        id: String,
    },
    /// Follow a job to its end; Ctrl-C leaves it running
    Watch {
        /// Id of the job
        id: String,
    },
    /// Cancel jobs
    Cancel {
        /// Ids of the jobs
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Args, Clone, Debug)]
pub(super) struct ListArgs {
    /// Only jobs in this state: queued, running, succeeded, failed or cancelled
    #[arg(long, value_name = "STATE")]
    state: Option<JobState>,
    /// Jobs to list, 1 to 200
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

pub(super) fn run(context: &Context, command: &JobsCommand) -> Result<(), ErrorBody> {
    match command {
        JobsCommand::List(args) => list(context, args),
        JobsCommand::Show { id } => {
            let id = job_id(id)?;
            let link = Link::open(context)?;
            let job: Job = link.client().get(&format!("/v1/jobs/{id}"))?;
            context.output.answer(&job, job_text)
        }
        JobsCommand::Watch { id } => watch(context, job_id(id)?),
        JobsCommand::Cancel { ids } => cancel(context, ids),
    }
}

fn job_id(text: &str) -> Result<JobId, ErrorBody> {
    text.parse().map_err(|_| {
        let message = format!("no job has the id `{}`", plain(text));
        ErrorBody::new(ErrorCode::ProcessingNotFound, message)
    })
}

fn list(context: &Context, args: &ListArgs) -> Result<(), ErrorBody> {
    let mut query = vec![("limit", args.limit.to_string())];
    query.extend(args.state.map(|state| ("state", state.to_string())));
    query.extend(args.cursor.clone().map(|cursor| ("cursor", cursor)));
    let link = Link::open(context)?;
    let jobs: List<Job> = link.client().get_with("/v1/jobs", &query)?;
    context.output.answer(&jobs, |jobs| {
        let mut table = Table::new(&["ID", "STATE", "CREATED", "PROMPT"], 3);
        for job in &jobs.data {
            table.row(vec![
                job.id.to_string(),
                state_text(job),
                local_time(&job.created_at),
                job.request.prompt.clone(),
            ]);
        }
        let mut text = table.to_text();
        if let Some(next) = &jobs.next {
            text.push_str(&format!("more: --cursor {}\n", plain(next)));
        }
        text
    })
}

fn state_text(job: &Job) -> String {
    match (job.state, job.progress.percent) {
        (JobState::Running, Some(percent)) => format!("{} {percent:.0}%", job.state),
        (state, _) => state.to_string(),
    }
}

/// A stored time as people read it: their own time zone, to the minute.
fn local_time(stamp: &str) -> String {
    stamp.parse::<Timestamp>().map_or_else(
        |_| stamp.to_owned(),
        |at| at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string(),
    )
}

fn job_text(job: &Job) -> String {
    let request = &job.request;
    let mut text = pairs(&[
        ("id", job.id.to_string()),
        ("state", state_text(job)),
        ("kind", job.kind.clone()),
        ("model", request.model.clone()),
        ("prompt", request.prompt.clone()),
        ("negative", request.negative_prompt.clone()),
        ("size", format!("{} x {}", request.width, request.height)),
        ("steps", request.steps.to_string()),
        ("guidance", request.guidance_scale.to_string()),
        ("scheduler", request.scheduler.clone()),
        ("seed", request.seed.to_string()),
        ("count", request.count.to_string()),
        ("format", request.output.format.clone()),
        ("created", job.created_at.clone()),
        ("started", job.started_at.clone().unwrap_or_default()),
        ("ended", job.ended_at.clone().unwrap_or_default()),
        ("timings", timings_text(job)),
    ]);
    for attempt in &job.attempts {
        let outcome = attempt.outcome.as_deref().unwrap_or("under way");
        let device = attempt.device.as_deref().unwrap_or("no device");
        let cause = attempt.cause.as_ref().map_or_else(String::new, |cause| format!(": {cause}"));
        let line = format!("attempt {} on {device}, {outcome}{cause}", attempt.number);
        text.push_str(&format!("{}\n", plain(&line)));
    }
    for artifact in &job.artifacts {
        let line = format!(
            "picture {}  seed {}  {} x {}  {}",
            artifact.id,
            artifact.seed,
            artifact.width,
            artifact.height,
            atelier_protocol::Bytes(artifact.bytes)
        );
        text.push_str(&format!("{}\n", plain(&line)));
    }
    for warning in &job.warnings {
        text.push_str(&format!("warning: {}\n", plain(&warning.message)));
    }
    if let Some(error) = &job.error {
        text.push_str(&format!("error: {} ({})\n", plain(&error.message), error.code));
        for detail in &error.details {
            text.push_str(&format!("  {}: {}\n", plain(&detail.field), plain(&detail.message)));
        }
    }
    text
}

fn timings_text(job: &Job) -> String {
    let timings = &job.timings;
    let stages = [
        ("queue", timings.queue_ms),
        ("load", timings.load_ms),
        ("encode", timings.encode_ms),
        ("denoise", timings.denoise_ms),
        ("decode", timings.decode_ms),
        ("post", timings.post_ms),
        ("total", timings.total_ms),
    ];
    let known = stages.iter().filter_map(|(name, ms)| Some(format!("{name} {:.0} ms", (*ms)?)));
    known.collect::<Vec<_>>().join(", ")
}

fn watch(context: &Context, id: JobId) -> Result<(), ErrorBody> {
    let mut link = Link::open(context)?;
    let mut display = Display::new(context.output);
    let followed = follow(&mut link, id, &Interrupt::default(), |_, event| display.event(event));
    display.finish();
    let job = followed?;
    if let Some(error) = job.error {
        return Err(error);
    }
    if context.output.json {
        return Ok(()); // its `end` has been told
    }
    context.output.line(&format!("{} {}", job.id, job.state))
}

/// Asks for the end of each job; one that cannot be cancelled does not keep the others from it.
fn cancel(context: &Context, ids: &[String]) -> Result<(), ErrorBody> {
    let ids = ids.iter().map(|id| job_id(id)).collect::<Result<Vec<_>, _>>()?;
    let link = Link::open(context)?;
    let mut first_error = None;
    for id in ids {
        match link.client().post::<Job>(&format!("/v1/jobs/{id}/cancel"), &json!({}), &[]) {
            Ok(job) => {
                context.output.answer(&job, |job| format!("{} {}", job.id, state_text(job)))?;
            }
            Err(error) if first_error.is_none() => first_error = Some(error),
            Err(error) => super::render::note(&shortened(&plain(&error.message), 200)),
        }
    }
    first_error.map_or(Ok(()), Err)
}
