//! Ctrl-C while a job is followed: the first one cancels the job, the second one ends the command at once.

use super::client::Client;
use super::render::note;
use atelier_protocol::JobId;
use atelier_protocol::http::Job;
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};

/// The exit code that shells expect of a command that was interrupted.
const INTERRUPTED: i32 = 130;

#[derive(Debug, Default)]
struct State {
    job: Option<(Client, JobId)>,
    requested: bool,
}

/// Listens in a thread of its own, because the command itself is busy reading events.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupt(Arc<Mutex<State>>);

impl Interrupt {
    pub(super) fn listen() -> Self {
        let interrupt = Self::default();
        let heard = interrupt.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            // Without a listener Ctrl-C ends the command and the job goes on, which is no harm.
            let Ok(runtime) = runtime else { return };
            while runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
                heard.heard();
            }
        });
        interrupt
    }

    /// From now on Ctrl-C cancels this job; a request that came before is made up for.
    pub(super) fn watch(&self, client: &Client, job: JobId) {
        let requested = {
            let mut state = self.state();
            state.job = Some((client.clone(), job));
            state.requested
        };
        if requested {
            cancel(client, job);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is two plain values; a panic elsewhere leaves them usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) {
        let (job, again) = {
            let mut state = self.state();
            let again = std::mem::replace(&mut state.requested, true);
            (state.job.clone(), again)
        };
        match job {
            Some((client, job)) if !again => {
                note("cancelling the job; press Ctrl-C again to leave at once");
                cancel(&client, job);
            }
            _ => std::process::exit(INTERRUPTED),
        }
    }
}

fn cancel(client: &Client, job: JobId) {
    // A job that has just ended cannot be cancelled, and a node that is away is asked again when it is back.
    let _ = client.post::<Job>(&format!("/v1/jobs/{job}/cancel"), &json!({}), &[]);
}
