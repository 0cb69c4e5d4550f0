//! Follows one job to its end over a stream that may break: the job goes on under the same id when its node is started
//! again, so the command comes back with the last event that it saw.

use super::interrupt::Interrupt;
use super::link::Link;
use super::sse::Received;
use atelier_protocol::http::Job;
use atelier_protocol::{ErrorBody, ErrorCode, JobId};
use std::time::{Duration, Instant};

/// How long a node may be away before the command gives up. The job itself is not lost by that.
const AWAY_LIMIT: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Gives every event to `on` and returns the job as its `end` told it.
pub(super) fn follow(
    link: &mut Link<'_>,
    job: JobId,
    interrupt: &Interrupt,
    mut on: impl FnMut(&Link<'_>, &Received),
) -> Result<Job, ErrorBody> {
    let path = format!("/v1/jobs/{job}/events");
    let mut last_id = None;
    let mut away: Option<Away> = None;
    loop {
        interrupt.watch(link.client(), job);
        let error = match link.client().events(&path, last_id) {
            Ok(events) => {
                for event in events {
                    away = None;
                    last_id = event.id.or(last_id);
                    on(link, &event);
                    if event.event == "end" {
                        return ended(event);
                    }
                }
                ErrorBody::new(ErrorCode::NodeUnreachable, "the node went away")
            }
            Err(error) => error,
        };
        if !is_passing(&error) {
            return Err(error);
        }
        let current = away.get_or_insert_with(Away::new);
        current.pause(error)?;
        while let Err(error) = link.renew() {
            if !is_passing(&error) {
                return Err(error);
            }
            current.pause(error)?;
        }
    }
}

fn ended(event: Received) -> Result<Job, ErrorBody> {
    serde_json::from_value(event.data).map_err(|error| {
        let message = format!("failed to read the job that ended: {error}");
        ErrorBody::new(ErrorCode::NodeUnreachable, message)
    })
}

/// Whether the node may be back soon.
fn is_passing(error: &ErrorBody) -> bool {
    matches!(error.code, ErrorCode::NodeUnreachable | ErrorCode::NodeStopping)
}

/// A node that does not answer, since when, and when to look again.
struct Away {
    since: Instant,
    pause: Duration,
}

impl Away {
    fn new() -> Self {
        Self { since: Instant::now(), pause: FIRST_PAUSE }
    }
    fn pause(&mut self, error: ErrorBody) -> Result<(), ErrorBody> {
        if self.since.elapsed() > AWAY_LIMIT {
            return Err(error);
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}
