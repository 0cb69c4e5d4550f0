//! `atelier generate`: a prompt in, pictures out. Finds or starts a node, submits one job, follows it, saves each picture
//! as it is finished.

use super::Context;
use super::follow::follow;
use super::interrupt::Interrupt;
use super::link::{Link, Stay};
use super::output::{self, Destination, Naming};
use super::progress::Display;
use super::render::note;
use super::worker;
use crate::http::extension;
use atelier_engine::clock::Clock;
use atelier_protocol::http::{Artifact, Job, JobRequest, OutputRequest, Validation};
use atelier_protocol::{ArtifactId, ErrorBody, ErrorCode};
use clap::{Args, ValueEnum};
use jiff::Zoned;
use jiff::tz::TimeZone;
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

/// The largest seed that every client can hold exactly.
const MAX_SEED: u64 = (1 << 53) - 1;

#[derive(Args, Clone, Debug)]
pub(super) struct GenerateArgs {
    /// What to draw
    prompt: String,
    /// Model to draw with: id, folder name or hash prefix [default: the node's default model]
    #[arg(long, short, value_name = "NAME")]
    model: Option<String>,
    /// What not to draw
    #[arg(long, short, value_name = "TEXT")]
    negative: Option<String>,
    /// Size in pixels [default: the model's]
    #[arg(long, short, value_name = "WIDTHxHEIGHT", value_parser = size)]
    size: Option<(u32, u32)>,
    /// Number of denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// How closely to follow the prompt [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true, value_parser = finite)]
    guidance: Option<f64>,
    /// Scheduler, as `atelier capabilities` lists them [default: the model's]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    /// Seed of the first picture; picture i has seed + i [default: a random one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    seed: Option<u64>,
    /// Number of pictures [default: 1]
    #[arg(long, short, value_name = "N")]
    count: Option<u32>,
    /// Format of the file [default: as the name in --out ends, else png]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Quality of a JPEG, 1 to 100
    #[arg(long, value_name = "Q")]
    quality: Option<u8>,
    /// Write no parameters into the file
    #[arg(long)]
    no_metadata: bool,
    /// Where to save: a file, or a folder (existing, or ending in `/`) for names with time, words and
    /// seed [default: a folder of today in the pictures folder]
    #[arg(long, short, value_name = "FILE|DIR")]
    out: Option<PathBuf>,
    /// Check the request and show it with every default filled in; draw nothing
    #[arg(long)]
    dry_run: bool,
    /// Draw on this device or not at all, as `atelier devices` lists them
    #[arg(long, value_name = "ID")]
    device: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Png,
    Jpeg,
    Webp,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let parts = text.split_once(['x', 'X', '×']);
    let parsed = parts.and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
    parsed.ok_or_else(|| "a size is WIDTHxHEIGHT in pixels, such as 512x768".to_owned())
}

/// JSON has no word for the others, and they would silently mean the default.
fn finite(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() { Ok(value) } else { Err("not a finite number".to_owned()) }
}

impl GenerateArgs {
    fn request(&self, format: Option<String>) -> JobRequest {
        let output = OutputRequest {
            format,
            quality: self.quality,
            metadata: self.no_metadata.then_some(false),
        };
        JobRequest {
            kind: "text_to_image".to_owned(),
            model: self.model.clone(),
            prompt: Some(self.prompt.clone()),
            negative_prompt: self.negative.clone(),
            width: self.size.map(|(width, _)| width),
            height: self.size.map(|(_, height)| height),
            steps: self.steps,
            guidance_scale: self.guidance,
            scheduler: self.scheduler.clone(),
            seed: self.seed,
            count: self.count,
            output: (output != OutputRequest::default()).then_some(output),
            device: self.device.clone(),
            ..JobRequest::default()
        }
    }
}

pub(super) fn run(context: &Context, args: &GenerateArgs) -> Result<(), ErrorBody> {
    let now = Clock::system().now().to_zoned(TimeZone::system());
    let plan = output::plan(
        args.out.as_deref(),
        args.format.map(Format::word),
        &context.settings.config.pictures,
        &now,
        |path| path.is_dir(),
    )?;
    plan.destination.check()?;
    let request = serde_json::to_value(args.request(plan.format)).map_err(|error| {
        ErrorBody::new(ErrorCode::Internal, format!("failed to write the request: {error}"))
    })?;
    let watched = io::stdout().is_terminal() || io::stderr().is_terminal();
    let stay = if watched { Stay::ForAWhile } else { Stay::ForThisCall };
    if args.dry_run {
        let link = Link::open_or_start(context, stay)?;
        let validation = link.client().post("/v1/jobs/validate", &request, &[]);
        link.finish();
        return dry_run(context, validation?);
    }
    let interrupt = Interrupt::listen();
    let mut display = Display::new(context.output);
    display.before("looking for a node");
    let link = Link::open_or_start(context, stay);
    let mut link = link.inspect_err(|_| display.finish())?;
    let drawn = draw(&mut link, &request, &interrupt, &mut display, &plan.destination, &now, args);
    display.finish();
    link.finish();
    let (job, saved) = drawn?;
    report(context, &job, saved)
}

/// The pictures on disk, and what went wrong with others.
#[derive(Default)]
struct Saved {
    done: BTreeSet<ArtifactId>,
    paths: Vec<(Artifact, PathBuf)>,
    problems: Vec<ErrorBody>,
}

fn draw(
    link: &mut Link<'_>,
    request: &serde_json::Value,
    interrupt: &Interrupt,
    display: &mut Display,
    destination: &Destination,
    now: &Zoned,
    args: &GenerateArgs,
) -> Result<(Job, Saved), ErrorBody> {
    announce_installation(link, request, display)?;
    let job = submit(link, request)?;
    let naming = Naming { at: now, prompt: &args.prompt, count: job.request.count };
    let mut saved = Saved::default();
    let job = follow(link, job.id, interrupt, |link, event| {
        display.event(event);
        if event.event == "artifact"
            && let Ok(artifact) = serde_json::from_value::<Artifact>(event.data.clone())
        {
            save(link, destination, naming, artifact, &mut saved);
        }
    })?;
    for artifact in &job.artifacts {
        save(link, destination, naming, artifact.clone(), &mut saved);
        // Another call may have ended the node that it started, right after our job's end. The store has the picture.
        if !saved.done.contains(&artifact.id) && link.renew().is_ok() {
            save(link, destination, naming, artifact.clone(), &mut saved);
        }
    }
    for warning in &job.warnings {
        display.warning(warning);
    }
    Ok((job, saved))
}

/// Says what the first picture on a machine costs before anything is downloaded, and not at all when the request would be
/// refused. The node installs; its progress comes with the job's.
fn announce_installation(
    link: &Link<'_>,
    request: &serde_json::Value,
    display: &Display,
) -> Result<(), ErrorBody> {
    let Some(notice) = worker::installation_ahead(link.context())? else { return Ok(()) };
    let validation: Validation = link.client().post("/v1/jobs/validate", request, &[])?;
    if let Some(error) = validation.error {
        return Err(error);
    }
    display.note(&notice.to_string());
    Ok(())
}

/// Submits once: the key makes a second try harmless when the first one's answer was lost, as when a node that was idle
/// for long ends in that very moment.
fn submit(link: &mut Link<'_>, request: &serde_json::Value) -> Result<Job, ErrorBody> {
    const TRIES: u32 = 3;
    let key = uuid::Uuid::now_v7().to_string();
    let mut tried = 1;
    loop {
        match link.client().post("/v1/jobs", request, &[("idempotency-key", key.as_str())]) {
            Err(ErrorBody {
                code: ErrorCode::NodeUnreachable | ErrorCode::NodeStopping, ..
            }) if tried < TRIES => {
                tried += 1;
                link.renew()?;
            }
            answer => return answer,
        }
    }
}

fn save(
    link: &Link<'_>,
    destination: &Destination,
    naming: Naming<'_>,
    artifact: Artifact,
    saved: &mut Saved,
) {
    if !saved.done.insert(artifact.id) {
        return;
    }
    let path = format!("/v1/artifacts/{}", artifact.id);
    let written = link.client().bytes(&path, artifact.bytes).and_then(|bytes| {
        destination.save(naming, artifact.seed, extension(&artifact.media_type), &bytes)
    });
    match written {
        Ok(path) => saved.paths.push((artifact, path)),
        // A node that went away is asked again when the job has ended; a disk that is full is not.
        Err(error) if error.code == ErrorCode::NodeUnreachable => {
            saved.done.remove(&artifact.id);
            saved.problems.retain(|known| known.code != ErrorCode::NodeUnreachable);
            saved.problems.push(error);
        }
        Err(error) => saved.problems.push(error),
    }
}

fn report(context: &Context, job: &Job, mut saved: Saved) -> Result<(), ErrorBody> {
    let all_saved = job.artifacts.iter().all(|artifact| saved.done.contains(&artifact.id));
    if all_saved {
        saved.problems.retain(|problem| problem.code != ErrorCode::NodeUnreachable);
    }
    saved.paths.sort_by_key(|(artifact, _)| artifact.index);
    for (artifact, path) in &saved.paths {
        if context.output.json {
            context.output.json(&json!({
                "event": "saved",
                "artifact": artifact.id,
                "path": path.to_string_lossy(),
                "seed": artifact.seed,
            }))?;
        } else {
            context.output.line(&path.to_string_lossy())?;
        }
    }
    if let Some(error) = &job.error {
        return Err(error.clone());
    }
    if let Some(problem) = saved.problems.into_iter().next() {
        return Err(problem);
    }
    if !context.output.json {
        note(&summary(job));
    }
    Ok(())
}

fn summary(job: &Job) -> String {
    let request = &job.request;
    let seeds = match u64::from(request.count) {
        0 | 1 => format!("seed {}", request.seed),
        count => format!("seeds {} to {}", request.seed, request.seed + count - 1),
    };
    let mut text = format!(
        "{seeds}, {} steps, {} x {}, {}",
        request.steps, request.width, request.height, request.model
    );
    if let Some(total_ms) = job.timings.total_ms {
        text.push_str(&format!(", {:.1} s", total_ms / 1e3));
    }
    super::render::plain(&text)
}

fn dry_run(context: &Context, validation: Validation) -> Result<(), ErrorBody> {
    if context.output.json {
        context.output.json(&validation)?;
    }
    for warning in validation.warnings.iter().filter(|_| !context.output.json) {
        note(&format!("Warning: {}", super::render::plain(&warning.message)));
    }
    match (validation.error, validation.request) {
        (Some(error), _) => Err(error),
        (None, Some(request)) if !context.output.json => {
            let text = serde_json::to_string_pretty(&request).unwrap_or_default();
            context.output.line(&text)
        }
        (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: GenerateArgs,
    }

    fn parsed(words: &[&str]) -> Result<GenerateArgs, clap::Error> {
        let words = ["generate"].iter().chain(words);
        Only::try_parse_from(words).map(|only| only.args)
    }

    #[test]
    fn a_bare_prompt_asks_for_nothing_but_itself() {
        let request = parsed(&["a strawberry"]).unwrap().request(None);
        assert_eq!(
            serde_json::to_value(request).unwrap(),
            json!({"kind": "text_to_image", "prompt": "a strawberry"})
        );
    }

    #[test]
    fn every_flag_reaches_the_request() {
        let words = "p --model m --negative n --size 64x128 --steps 4 --guidance -1.5 --scheduler s \
                     --seed 9007199254740991 --count 2 --quality 80 --no-metadata --device cpu";
        let args = parsed(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(
            serde_json::to_value(args.request(Some("jpeg".to_owned()))).unwrap(),
            json!({
                "kind": "text_to_image", "model": "m", "prompt": "p", "negative_prompt": "n",
                "width": 64, "height": 128, "steps": 4, "guidance_scale": -1.5, "scheduler": "s",
                "seed": 9_007_199_254_740_991_u64, "count": 2, "device": "cpu",
                "output": {"format": "jpeg", "quality": 80, "metadata": false},
            })
        );
    }

    #[test]
    fn what_cannot_be_said_in_a_request_is_refused_at_once() {
        for wrong in [
            ["p", "--seed", "9007199254740992"],
            ["p", "--seed", "-1"],
            ["p", "--size", "64"],
            ["p", "--size", "64x"],
            ["p", "--size", "-64x64"],
            ["p", "--guidance", "nan"],
            ["p", "--guidance", "inf"],
            ["p", "--format", "gif"],
            ["p", "--quality", "300"],
        ] {
            let error = parsed(&wrong).expect_err(wrong[2]);
            assert_eq!(error.exit_code(), 2, "{wrong:?}");
        }
    }
}
