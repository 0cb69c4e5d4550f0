//! The file itself: connections, their settings, and the numbered migrations.

use super::StoreError;
use crate::files;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::path::Path;
use std::time::Duration;

/// Forward only; the number of a migration is its place here. A released one is never edited.
const MIGRATIONS: [&str; 1] = [include_str!("../../migrations/0001_jobs.sql")];

/// How long a connection waits for another one's lock. The writer is alone, so this is for visitors such as `sqlite3`.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// Longest write-ahead log that stays on disk after a checkpoint.
const LOG_LIMIT_BYTES: i64 = 32 << 20;
/// More than the store has statements.
const CACHED_STATEMENTS: usize = 64;

/// The writing connection of a migrated database, and whether the database was made just now.
pub(super) fn open_for_writing(path: &Path) -> Result<(Connection, bool), StoreError> {
    // SQLite gives its side files the permissions of the database, so this covers them too.
    files::create_private_file(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_LIMIT)?;
    // Before anything is written: a newer version's file must stay as it is.
    let found = schema_version(&connection)?;
    if found > known_version() {
        return Err(StoreError::Newer { found, known: known_version() });
    }
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError::Unavailable {
            reason: format!("the disk allows no write-ahead log (SQLite stays in mode {mode})"),
            source: std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::Unsupported)),
        });
    }
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "journal_size_limit", LOG_LIMIT_BYTES)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    migrate(&mut connection, found)?;
    Ok((connection, found == 0))
}

/// A connection that cannot write.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_LIMIT)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    Ok(connection)
}

fn migrate(connection: &mut Connection, found: i64) -> Result<(), StoreError> {
    let missing = MIGRATIONS.iter().zip(1..).filter(|&(_, number)| number > found);
    if missing.clone().next().is_none() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (sql, number) in missing {
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", number)?;
    }
    Ok(transaction.commit()?)
}

pub(super) fn known_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).expect("few migrations")
}

pub(super) fn schema_version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Reads every page once. `Ok` holds what is wrong, which is nothing in a sound database.
pub(super) fn quick_check(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let mut statement = connection.prepare("PRAGMA quick_check(20)")?;
    let lines = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    Ok(if lines == ["ok"] { Vec::new() } else { lines })
}

#[cfg(test)]
mod tests {
    use super::*;
    use atelier_protocol::ErrorCode;
    use std::os::unix::fs::PermissionsExt;

    /// Every object of the schema with its text in one line, and the rows that migrations put in.
    fn dump(connection: &Connection) -> Vec<String> {
        let mut lines = Vec::new();
        for sql in [
            "SELECT type || ' ' || name || ': ' || coalesce(sql, '') FROM sqlite_schema ORDER BY 1",
            "SELECT state || ' ' || jobs FROM job_counts ORDER BY 1",
        ] {
            let mut statement = connection.prepare(sql).unwrap();
            let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
            lines.extend(
                rows.map(|row| row.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")),
            );
        }
        lines
    }

    #[test]
    fn the_migrations_add_up_to_the_schema_file() {
        let folder = tempfile::tempdir().unwrap();
        let (migrated, fresh) = open_for_writing(&folder.path().join("a.db")).unwrap();
        assert!(fresh);
        let whole = Connection::open_in_memory().unwrap();
        whole.execute_batch(include_str!("../../migrations/schema.sql")).unwrap();
        assert_eq!(dump(&migrated), dump(&whole));
    }

    #[test]
    fn every_migration_file_is_in_the_list_in_its_place() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let mut numbered = files::read_dir(&folder).unwrap();
        numbered.retain(|path| path.file_name().unwrap() != "schema.sql");
        assert_eq!(numbered.len(), MIGRATIONS.len());
        for ((path, sql), number) in numbered.iter().zip(MIGRATIONS).zip(1..) {
            let name = path.file_name().unwrap().to_string_lossy();
            assert!(name.starts_with(&format!("{number:04}_")), "{name}");
            assert_eq!(files::read_to_string(path).unwrap(), sql, "{name}");
        }
    }

    #[test]
    fn opening_again_changes_nothing_and_the_file_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let before = dump(&open_for_writing(&path).unwrap().0);
        let (again, fresh) = open_for_writing(&path).unwrap();
        assert!(!fresh);
        assert_eq!(dump(&again), before);
        for file in files::read_dir(folder.path()).unwrap() {
            let mode = files::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} is open to others", file.display());
        }
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let newer = Connection::open(&path).unwrap();
        newer.pragma_update(None, "user_version", 99).unwrap();
        drop(newer);
        let before = files::read(&path).unwrap();
        let error = open_for_writing(&path).expect_err("version 99");
        assert_eq!(error.code(), ErrorCode::StoreCorrupt);
        assert!(error.to_string().contains("99") && error.to_string().contains('1'), "{error}");
        assert_eq!(files::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_is_no_database_is_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        files::write_atomic(&path, &[b'x'; 4096]).unwrap();
        let error = open_for_writing(&path).expect_err("no database");
        assert_eq!(error.code(), ErrorCode::StoreCorrupt);
    }

    #[test]
    fn damaged_pages_are_found_by_the_check() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        drop(open_for_writing(&path).unwrap());
        assert!(quick_check(&open_for_reading(&path).unwrap()).unwrap().is_empty());
        let mut bytes = files::read(&path).unwrap();
        let last = bytes.len() - 4096;
        bytes[last..].fill(0xa5);
        files::write_atomic(&path, &bytes).unwrap();
        let found = quick_check(&open_for_reading(&path).unwrap());
        assert!(!matches!(&found, Ok(lines) if lines.is_empty()), "{found:?}");
    }
}
