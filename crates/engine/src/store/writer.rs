//! The one thread that writes.
//!
//! Operations that wait together share one commit, so that sixty-four clients pay for one sync instead of sixty-four:
//! each runs in its own savepoint, the group commits as soon as nobody else is waiting (never after a pause), and only
//! then is anybody answered. If the commit fails, all of them have failed.

use super::StoreError;
use super::settings::{self, CLEAN_STOP};
use rusqlite::Connection;
use serde_json::Value;
use std::path::PathBuf;
use std::thread;
use tokio::sync::{mpsc, oneshot};

/// Operations that may wait before callers are made to.
const INBOX: usize = 256;
/// Most operations in one commit, so that an endless stream of them cannot put off the answers.
const MAX_GROUP: usize = 1024;

pub(super) enum Message {
    Write(Box<dyn Operation>),
    Close(Close),
}

/// Fold the log into the database and end.
pub(super) struct Close {
    /// Whether the next start may trust the file.
    clean: bool,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

/// A change and the caller who waits for it.
pub(super) trait Operation: Send {
    /// Makes the change; the result is kept until it is durable.
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError>;
    /// Tells the caller the result, or why it came to nothing.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Call<T, F> {
    change: Option<F>,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Operation for Call<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError> {
        if let Some(change) = self.change.take() {
            self.result = Some(change(connection)?);
        }
        Ok(())
    }
    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { result, reply, .. } = *self;
        let answer = committed.and_then(|()| result.ok_or(StoreError::Closed));
        let _ = reply.send(answer); // the caller may have left; the change stands
    }
}

/// The way to the thread. The thread ends when the last of these is gone, or after `close`.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    inbox: mpsc::Sender<Message>,
}

impl Writer {
    pub(super) fn start(connection: Connection, folder: PathBuf) -> Result<Self, StoreError> {
        let (inbox, messages) = mpsc::channel(INBOX);
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || Thread { connection, folder, messages }.run())?;
        Ok(Self { inbox })
    }

    pub(super) async fn write<T, F>(&self, change: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let call = Call { change: Some(change), result: None, reply };
        let message = Message::Write(Box::new(call));
        self.inbox.send(message).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Idempotent: a store that is closed stays so.
    pub(super) async fn close(&self, clean: bool) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        if self.inbox.send(Message::Close(Close { clean, reply })).await.is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }
}

struct Thread {
    connection: Connection,
    /// Where the database is, to tell a full disk from a broken one.
    folder: PathBuf,
    messages: mpsc::Receiver<Message>,
}

impl Thread {
    fn run(mut self) {
        while let Some(message) = self.messages.blocking_recv() {
            let close = match message {
                Message::Write(first) => self.group(first),
                Message::Close(close) => Some(close),
            };
            if let Some(Close { clean, reply }) = close {
                self.messages.close(); // whoever still waits is told that the store is closed
                let closed = self.stop(clean).map_err(|error| error.or_full(&self.folder));
                drop(self.connection);
                let _ = reply.send(closed); // the caller may have left
                return;
            }
        }
    }

    /// Runs `first` and whoever waits behind it, commits once, answers all.
    fn group(&mut self, first: Box<dyn Operation>) -> Option<Close> {
        let mut next = Some(first);
        let mut close = None;
        let mut room = MAX_GROUP;
        let mut done: Vec<Box<dyn Operation>> = Vec::new();
        while let Some(mut operation) = next.take() {
            room -= 1;
            match self.step(operation.as_mut()) {
                Ok(()) => done.push(operation),
                Err(error) => {
                    // A full disk may undo the whole transaction, not only this operation's part of it.
                    if self.connection.is_autocommit() {
                        refuse(&mut done, &error);
                    }
                    operation.answer(Err(error));
                }
            }
            if room > 0 {
                match self.messages.try_recv() {
                    Ok(Message::Write(operation)) => next = Some(operation),
                    Ok(Message::Close(asked)) => close = Some(asked),
                    Err(_) => {} // nobody waits: commit
                }
            }
        }
        if !self.connection.is_autocommit() {
            match self.connection.execute_batch("COMMIT") {
                Ok(()) => done.drain(..).for_each(|operation| operation.answer(Ok(()))),
                Err(error) => {
                    let error = StoreError::from(error).or_full(&self.folder);
                    self.roll_back("ROLLBACK");
                    refuse(&mut done, &error);
                }
            }
        }
        close
    }

    fn step(&self, operation: &mut dyn Operation) -> Result<(), StoreError> {
        let fail = |error: StoreError| error.or_full(&self.folder);
        if self.connection.is_autocommit() {
            self.connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| fail(e.into()))?;
        }
        self.connection.execute_batch("SAVEPOINT operation").map_err(|e| fail(e.into()))?;
        let result = operation.run(&self.connection).and_then(|()| {
            self.connection.execute_batch("RELEASE operation").map_err(StoreError::from)
        });
        result.map_err(|error| {
            if !self.connection.is_autocommit() {
                self.roll_back("ROLLBACK TO operation; RELEASE operation");
            }
            fail(error)
        })
    }

    fn roll_back(&self, sql: &str) {
        if self.connection.is_autocommit() {
            return; // SQLite did it by itself
        }
        if let Err(error) = self.connection.execute_batch(sql) {
            tracing::error!(%error, "the store could not undo a failed change");
            // Nothing of this transaction may be committed with half a change in it.
            let _ = self.connection.execute_batch("ROLLBACK"); // if this fails too, so will the commit
        }
    }

    fn stop(&self, clean: bool) -> Result<(), StoreError> {
        settings::set(&self.connection, CLEAN_STOP, &Value::Bool(clean))?;
        let folded = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        Ok(folded?)
    }
}

fn refuse(operations: &mut Vec<Box<dyn Operation>>, error: &StoreError) {
    for operation in operations.drain(..) {
        operation.answer(Err(error.clone()));
    }
}
