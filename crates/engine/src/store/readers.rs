//! A few read-only connections. A read sees every change that was answered before it began.

use super::StoreError;
use super::database;
use rusqlite::Connection;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Reads at the same time; more wait. Each holds at most a page cache of 2 MiB.
const READERS: u32 = 3;

#[derive(Debug)]
pub(super) struct Readers {
    /// One permit for each idle connection. Closed with the store.
    turns: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Readers {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let idle = (0..READERS)
            .map(|_| database::open_for_reading(path))
            .collect::<Result<Vec<_>, StoreError>>()?;
        let turns = Arc::new(Semaphore::new(idle.len()));
        Ok(Self { turns, idle: Arc::new(Mutex::new(idle)) })
    }

    pub(super) async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let connection = lock(&self.idle).pop().ok_or(StoreError::Closed)?;
        // Goes with the blocking part, not with the caller, who may leave at any time.
        let lent = Lent { connection: Some(connection), idle: self.idle.clone(), _turn: turn };
        let read = move || {
            let connection = lent.connection.as_ref().ok_or(StoreError::Closed)?;
            // One snapshot for all statements of a query, so that a job and its outputs belong together.
            let snapshot = connection.unchecked_transaction()?;
            query(&snapshot)
        };
        tokio::task::spawn_blocking(read).await.map_err(|_| StoreError::Closed)?
    }

    /// Waits for reads that have begun, refuses later ones, and closes the connections.
    pub(super) async fn close(&self) {
        let all = self.turns.acquire_many(READERS).await;
        self.turns.close();
        lock(&self.idle).clear();
        drop(all);
    }
}

/// A connection out on a query; it comes back however the query ends.
struct Lent {
    connection: Option<Connection>,
    idle: Arc<Mutex<Vec<Connection>>>,
    _turn: OwnedSemaphorePermit,
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.idle).extend(self.connection.take());
    }
}

fn lock(idle: &Mutex<Vec<Connection>>) -> std::sync::MutexGuard<'_, Vec<Connection>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
