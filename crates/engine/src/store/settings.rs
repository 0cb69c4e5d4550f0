//! Values by name: the node's identity, how it stopped, numerics profiles. Values are JSON.

use super::{StoreError, rows};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

/// The store's own names begin with `store.`.
pub(super) const NODE_ID: &str = "store.node_id";
pub(super) const CLEAN_STOP: &str = "store.clean_stop";

pub(super) fn get(connection: &Connection, key: &str) -> Result<Option<Value>, StoreError> {
    let text: Option<String> = connection
        .prepare_cached("SELECT value FROM settings WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    text.map(|text| rows::from_json(&text, "a setting")).transpose()
}

pub(super) fn set(connection: &Connection, key: &str, value: &Value) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO settings (key, value) VALUES (?1, ?2)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![key, value.to_string()])?;
    Ok(())
}
