//! [`Store`]: the whole surface that others see. Opening, the typed operations, closing.

use super::readers::Readers;
use super::settings::{self, CLEAN_STOP, NODE_ID};
use super::types::{
    Assigned, AttemptOutcome, CancelOutcome, Claim, Counts, Ending, Finalised, NewJob, QueuedJob,
    Recovered, Requeued, StoredArtifact, StoredEvent, StoredJob, Submitted,
};
use super::writer::Writer;
use super::{StoreError, database, jobs, queries, rows};
use atelier_protocol::http::JobState;
use atelier_protocol::{ArtifactId, DeviceId, ErrorBody, JobId};
use rusqlite::{Connection, InterruptHandle};
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use tokio::sync::watch;
use uuid::Uuid;

/// Who opens the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// For a new store. A store that exists keeps the one that it was made with: see [`Store::identity`].
    pub node_id: Uuid,
    /// Different at every start; marks which running jobs are ours.
    pub boot_id: Uuid,
}

/// What is known of the file's health. After an unclean stop it is checked in the background.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Integrity {
    /// The last stop was clean, so there was nothing to check.
    NotChecked,
    Checking,
    Sound,
    Damaged {
        findings: Vec<String>,
    },
    /// The check could not be finished.
    Unknown {
        reason: String,
    },
}

/// The job store. Cheap to clone. Opening blocks; every operation is async and needs a tokio runtime.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    identity: Identity,
    writer: Writer,
    readers: Readers,
    integrity: watch::Receiver<Integrity>,
    check: Mutex<Option<Check>>,
}

/// The background check, so that closing need not wait for it.
struct Check {
    interrupt: InterruptHandle,
    thread: JoinHandle<()>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.0.identity).finish()
    }
}

impl Store {
    /// Opens the database, making or migrating it if need be. The caller holds the lock of the data folder.
    pub fn open(path: &Path, identity: Identity) -> Result<Self, StoreError> {
        open(path, identity).map_err(|error| error.while_opening(path))
    }

    /// This start's identity, with the node id that the store was made with.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.identity
    }

    /// Health of the file, as far as it is known.
    #[must_use]
    pub fn integrity(&self) -> watch::Receiver<Integrity> {
        self.0.integrity.clone()
    }

    /// Accepts a job, unless its key came before or the queue is full.
    pub async fn submit(&self, job: NewJob) -> Result<Submitted, StoreError> {
        self.write(move |db| jobs::submit(db, &job)).await
    }

    /// Starts the next attempt at a queued job, for this boot.
    pub async fn claim(
        &self,
        job: JobId,
        now: String,
        lease_until: String,
    ) -> Result<Claim, StoreError> {
        let identity = self.0.identity;
        self.write(move |db| jobs::claim(db, identity, job, &now, &lease_until)).await
    }

    /// Notes where an attempt runs.
    pub async fn assign(
        &self,
        job: JobId,
        attempt: u32,
        device: DeviceId,
        worker_pid: Option<u32>,
    ) -> Result<Assigned, StoreError> {
        self.write(move |db| jobs::assign(db, job, attempt, &device, worker_pid)).await
    }

    /// Closes an attempt and puts the job back in its old place, or ends it if its cancel was asked for.
    pub async fn requeue(
        &self,
        job: JobId,
        attempt: u32,
        outcome: AttemptOutcome,
        cause: Option<ErrorBody>,
        now: String,
    ) -> Result<Requeued, StoreError> {
        self.write(move |db| jobs::requeue(db, job, attempt, outcome, cause.as_ref(), &now)).await
    }

    /// Ends a queued job; leaves a durable wish with a running one.
    pub async fn request_cancel(
        &self,
        job: JobId,
        now: String,
    ) -> Result<CancelOutcome, StoreError> {
        self.write(move |db| jobs::request_cancel(db, job, &now)).await
    }

    /// Ends a running job: state, outputs, attempt and events, all or nothing, once.
    pub async fn finalise(
        &self,
        job: JobId,
        attempt: u32,
        ending: Ending,
        now: String,
    ) -> Result<Finalised, StoreError> {
        self.write(move |db| jobs::finalise(db, job, attempt, &ending, &now)).await
    }

    /// Takes back what ran under older boots. Called once, before anything is claimed.
    pub async fn recover(&self, now: String) -> Result<Recovered, StoreError> {
        let identity = self.0.identity;
        self.write(move |db| jobs::recover(db, identity, &now)).await
    }

    pub async fn job(&self, id: JobId) -> Result<Option<StoredJob>, StoreError> {
        self.read(move |db| queries::job(db, id)).await
    }

    /// One page, newest first, and the cursor of the next page if there is one.
    pub async fn jobs(
        &self,
        state: Option<JobState>,
        cursor: Option<String>,
        limit: u32,
    ) -> Result<(Vec<StoredJob>, Option<String>), StoreError> {
        self.read(move |db| queries::jobs(db, state, cursor.as_deref(), limit)).await
    }

    /// The line, first to run first.
    pub async fn queued(&self) -> Result<Vec<QueuedJob>, StoreError> {
        self.read(queries::queued).await
    }

    pub async fn counts(&self) -> Result<Counts, StoreError> {
        self.read(queries::counts).await
    }

    /// Jobs ahead of this one; nothing if it is not queued.
    pub async fn position(&self, job: JobId) -> Result<Option<u32>, StoreError> {
        self.read(move |db| queries::position(db, job)).await
    }

    /// Events with a number above `after`, oldest first: of one job, or of the node.
    pub async fn events_after(
        &self,
        job: Option<JobId>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.read(move |db| queries::events_after(db, job, after, limit)).await
    }

    /// Number of the node's newest event; 0 before the first.
    pub async fn last_event(&self) -> Result<u64, StoreError> {
        self.read(queries::last_event).await
    }

    pub async fn artifact(&self, id: ArtifactId) -> Result<Option<StoredArtifact>, StoreError> {
        self.read(move |db| queries::artifact(db, id)).await
    }

    pub async fn setting(&self, key: &str) -> Result<Option<Value>, StoreError> {
        let key = key.to_owned();
        self.read(move |db| settings::get(db, &key)).await
    }

    pub async fn set_setting(&self, key: &str, value: Value) -> Result<(), StoreError> {
        let key = key.to_owned();
        self.write(move |db| settings::set(db, &key, &value)).await
    }

    /// Finishes what was begun, folds the log into the database and marks a clean stop, unless a check of the file is
    /// still owed. Every later operation is answered with an error. Dropping the store instead loses nothing, but the
    /// next start will check the file.
    pub async fn close(&self) -> Result<(), StoreError> {
        let check = self.0.check.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Check { interrupt, thread }) = check {
            interrupt.interrupt();
            let joined = tokio::task::spawn_blocking(move || thread.join());
            let _ = joined.await; // a check that panicked has told the log
        }
        let clean = match &*self.0.integrity.borrow() {
            Integrity::NotChecked | Integrity::Sound => true,
            Integrity::Checking | Integrity::Damaged { .. } | Integrity::Unknown { .. } => false,
        };
        self.0.readers.close().await;
        self.0.writer.close(clean).await
    }

    pub(super) async fn write<T, F>(&self, change: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.0.writer.write(change).await
    }

    async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.0.readers.read(query).await
    }
}

fn open(path: &Path, identity: Identity) -> Result<Store, StoreError> {
    let (mut connection, fresh) = database::open_for_writing(path)?;
    let start = connection.transaction()?;
    let identity = match settings::get(&start, NODE_ID)? {
        Some(node_id) => {
            Identity { node_id: rows::from_json(&node_id.to_string(), NODE_ID)?, ..identity }
        }
        None => {
            settings::set(&start, NODE_ID, &json!(identity.node_id))?;
            identity
        }
    };
    let clean = fresh || settings::get(&start, CLEAN_STOP)? == Some(Value::Bool(true));
    settings::set(&start, CLEAN_STOP, &Value::Bool(false))?;
    start.commit()?;

    let readers = Readers::open(path)?;
    let (findings, integrity) = watch::channel(Integrity::NotChecked);
    let check = if clean { None } else { Some(start_check(path, findings)?) };
    let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
    let writer = Writer::start(connection, folder)?;
    Ok(Store(Arc::new(Inner { identity, writer, readers, integrity, check: Mutex::new(check) })))
}

fn start_check(path: &Path, findings: watch::Sender<Integrity>) -> Result<Check, StoreError> {
    let connection = database::open_for_reading(path)?;
    let interrupt = connection.get_interrupt_handle();
    findings.send_replace(Integrity::Checking);
    let run = move || {
        let found = match database::quick_check(&connection) {
            Ok(lines) if lines.is_empty() => Integrity::Sound,
            Ok(findings) => Integrity::Damaged { findings },
            Err(StoreError::Corrupt { what }) => Integrity::Damaged { findings: vec![what] },
            Err(error) => Integrity::Unknown { reason: error.to_string() },
        };
        match &found {
            Integrity::Damaged { findings } => {
                tracing::error!(?findings, "the job store is damaged; restore a backup");
            }
            Integrity::Unknown { reason } => {
                tracing::warn!(%reason, "the check of the job store after an unclean stop ended early");
            }
            Integrity::NotChecked | Integrity::Checking | Integrity::Sound => {
                tracing::info!("the job store is sound after an unclean stop");
            }
        }
        findings.send_replace(found);
    };
    let thread = thread::Builder::new().name("store-check".to_owned()).spawn(run)?;
    Ok(Check { interrupt, thread })
}
