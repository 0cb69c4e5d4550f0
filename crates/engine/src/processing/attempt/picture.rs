//! One picture: a run of the worker, its pixels, its file.

use super::{Attempt, Stop, cancel_asked};
use crate::memory::Owner;
use crate::model::{Loaded, Model};
use crate::processing::pace;
use crate::processing::{PictureFacts, Placement, RawImage};
use crate::store::NewArtifact;
use crate::worker::{RunEvent, SlotClaim, SlotFile, WorkerHandle};
use atelier_protocol::worker::{FromWorker, Phase, RunItem, RunTimings, ToWorker, Work};
use atelier_protocol::{ArtifactId, Bytes, ErrorBody, ErrorCode, RunId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes a pixel in a slot: RGB.
const CHANNELS: u64 = 3;

/// What a run brought.
struct Drawn {
    image: RawImage,
    timings: RunTimings,
}

impl Attempt<'_> {
    pub(super) async fn draw_picture(
        &mut self,
        index: u32,
        model: &Arc<Model>,
        worker: &WorkerHandle,
        loaded: &Loaded,
    ) -> Result<NewArtifact, Stop> {
        let tools = &self.context.tools;
        let dtype = loaded.numerics.dtype;
        let plan = tools.planner.plan(&self.request, Placement { dtype, index })?;
        let room = tools.memory.reserve(&self.device, Owner::Job(self.id), plan.peak).await;
        let _room = room.map_err(ErrorBody::from)?;
        let slot_bytes = u64::from(plan.width) * u64::from(plan.height) * CHANNELS;
        let slot = SlotFile::new(slot_bytes).map_err(|error| {
            let needed = Bytes(slot_bytes);
            let message = format!("a picture slot of {needed} cannot be made: {error}");
            ErrorBody::new(ErrorCode::MemoryInsufficient, message)
        })?;
        let work = Work { run: RunId::mint(), job: self.id, attempt: self.number };
        let message = ToWorker::Run {
            run: work.run,
            model: model.id.clone(),
            device: loaded.worker_device.clone(),
            items: vec![RunItem {
                job: self.id,
                attempt: self.number,
                seed: plan.seed,
                slot: slot.describe(),
            }],
            steps: plan.steps,
        };
        let pace_key = pace::key(&self.device, &model.id, plan.width, plan.height);
        let drawn = self.follow(work, worker, message, slot, &pace_key).await?;
        self.note(self.tally.saving());
        let started = Instant::now();
        let facts = PictureFacts {
            job: self.id,
            request: self.request.clone(),
            index,
            seed: plan.seed,
            model_title: model.title.clone(),
            model_blake3: loaded.model_blake3.clone(),
            device: self.device.clone(),
            numerics: loaded.numerics.clone(),
            versions: worker.view().versions,
            batch_size: 1,
            batch_slot: 0,
            created_at: tools.clock.stamp(),
        };
        let artifact = self.finish(drawn.image, facts).await?;
        self.context.pace.keep(&tools.store, &pace_key).await;
        self.tally.picture_done(drawn.timings, started.elapsed().as_secs_f64() * 1000.0);
        Ok(artifact)
    }

    /// Follows a run to its end, passing progress up and a cancel down.
    async fn follow(
        &mut self,
        work: Work,
        worker: &WorkerHandle,
        message: ToWorker,
        slot: SlotFile,
        pace_key: &str,
    ) -> Result<Drawn, Stop> {
        let learned = self.context.pace.learned(&self.context.tools.store, pace_key).await;
        let mut events = worker.run(message, learned).await?;
        let slot = Arc::new(slot);
        let mut image = None;
        let mut slowest_step = Duration::ZERO;
        let mut cancelled = self.cancelled.clone();
        let mut patience: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = cancel_asked(&mut cancelled), if patience.is_none() => {
                    worker.cancel(work).await;
                    let least = self.context.config.cancel_limit;
                    patience = Some(Instant::now() + least.max(slowest_step * 3));
                    continue;
                }
                () = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    let reason = "the worker did not acknowledge a cancel in time";
                    worker.kill(ErrorCode::WorkerUnresponsive, reason).await;
                    return Err(Stop::Cancelled);
                }
            };
            match event {
                None => return Err(lost("the run ended without a word")),
                Some(RunEvent::Lost(loss)) => return Err(loss.body().into()),
                Some(RunEvent::Message(FromWorker::Progress { phase, step, step_ms, .. })) => {
                    let step_time =
                        Duration::try_from_secs_f64(step_ms / 1000.0).unwrap_or_default();
                    slowest_step = slowest_step.max(step_time);
                    if phase == Phase::Denoise {
                        self.context.pace.step(pace_key, step_ms);
                    }
                    let progress = self.tally.on_progress(phase, step, step_ms);
                    self.note(progress);
                }
                Some(RunEvent::Message(claim @ FromWorker::Image { .. })) => {
                    match read_slot(Arc::clone(&slot), claim).await {
                        Ok(raw) => image = Some(raw),
                        Err(reason) => {
                            worker.kill(ErrorCode::ProtocolViolation, reason.clone()).await;
                            return Err(lost(&reason));
                        }
                    }
                }
                Some(RunEvent::Message(FromWorker::Done { timings, .. })) => match image.take() {
                    Some(image) => return Ok(Drawn { image, timings }),
                    None => {
                        let reason = "the worker said done and sent no picture";
                        worker.kill(ErrorCode::ProtocolViolation, reason).await;
                        return Err(lost(reason));
                    }
                },
                Some(RunEvent::Message(FromWorker::Failed { error, .. })) => {
                    let body = ErrorBody::new(error.code, error.message);
                    return Err(match error.code {
                        ErrorCode::ProcessingCancelled => Stop::Cancelled,
                        _ => Stop::Failed(body.with_details(error.details)),
                    });
                }
                Some(RunEvent::Message(_)) => {}
            }
        }
    }

    /// Encodes and stores off the async threads: both take longer than a task may hold one.
    async fn finish(&self, image: RawImage, facts: PictureFacts) -> Result<NewArtifact, Stop> {
        let tools = self.context.tools.clone();
        let finished = tokio::task::spawn_blocking(move || {
            let (width, height) = (image.width, image.height);
            let encoded = tools.finisher.finish(image, &facts)?;
            let file = tools.files.write(&encoded.bytes, encoded.extension)?;
            Ok::<_, ErrorBody>(NewArtifact {
                id: ArtifactId::mint(),
                index: facts.index,
                media_type: encoded.media_type.to_owned(),
                width,
                height,
                seed: facts.seed,
                file,
            })
        });
        let finished = finished.await.map_err(|error| {
            ErrorBody::new(ErrorCode::PostprocessingFailed, format!("encoding ended: {error}"))
        });
        Ok(finished??)
    }
}

async fn read_slot(slot: Arc<SlotFile>, claim: FromWorker) -> Result<RawImage, String> {
    let FromWorker::Image { slot: name, offset, bytes, width, height, channels, crc32c, .. } =
        claim
    else {
        return Err("no image".to_owned());
    };
    let read = tokio::task::spawn_blocking(move || {
        slot.read(SlotClaim { slot: &name, offset, bytes, width, height, channels, crc32c })
    });
    match read.await {
        Ok(Ok(pixels)) => Ok(RawImage { width, height, channels, pixels }),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn lost(reason: &str) -> Stop {
    Stop::WorkerGone(ErrorBody::new(ErrorCode::ProtocolViolation, reason))
}
