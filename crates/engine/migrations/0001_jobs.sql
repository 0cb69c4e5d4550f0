-- Jobs, their attempts, outputs and events; idempotency keys; settings.
-- Times are RFC 3339 in UTC with milliseconds, so that their order as text is their order in time.

CREATE TABLE jobs (
    queue_seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT    NOT NULL UNIQUE,
    owner            TEXT    NOT NULL,
    kind             TEXT    NOT NULL,
    state            TEXT    NOT NULL
                     CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    priority         INTEGER NOT NULL DEFAULT 0,
    request          TEXT    NOT NULL,
    warnings         TEXT    NOT NULL,
    attempt          INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    node_id          TEXT,
    boot_id          TEXT,
    lease_until      TEXT,
    created_at       TEXT    NOT NULL,
    started_at       TEXT,
    ended_at         TEXT,
    error            TEXT,
    timings          TEXT    NOT NULL DEFAULT '{}',
    CHECK ((ended_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))),
    CHECK ((boot_id IS NOT NULL) = (state = 'running')),
    CHECK (cancel_requested = 0 OR state <> 'queued')
) STRICT;

CREATE INDEX jobs_by_state ON jobs (state);
CREATE INDEX jobs_in_line ON jobs (priority DESC, queue_seq) WHERE state = 'queued';

-- The last line of defence for "ends once": no statement can take a job out of a terminal state.
CREATE TRIGGER jobs_end_once BEFORE UPDATE OF state ON jobs
WHEN OLD.state IN ('succeeded', 'failed', 'cancelled')
BEGIN
    SELECT RAISE(ABORT, 'the job has ended');
END;

-- Counted as they change, since the limit of the queue is looked at by every submission.
CREATE TABLE job_counts (
    state TEXT    NOT NULL PRIMARY KEY,
    jobs  INTEGER NOT NULL CHECK (jobs >= 0)
) STRICT, WITHOUT ROWID;

INSERT INTO job_counts (state, jobs)
VALUES ('queued', 0), ('running', 0), ('succeeded', 0), ('failed', 0), ('cancelled', 0);

CREATE TRIGGER jobs_counted_in AFTER INSERT ON jobs
BEGIN
    UPDATE job_counts SET jobs = jobs + 1 WHERE state = NEW.state;
END;

CREATE TRIGGER jobs_counted_over AFTER UPDATE OF state ON jobs WHEN OLD.state <> NEW.state
BEGIN
    UPDATE job_counts SET jobs = jobs - 1 WHERE state = OLD.state;
    UPDATE job_counts SET jobs = jobs + 1 WHERE state = NEW.state;
END;

CREATE TRIGGER jobs_counted_out AFTER DELETE ON jobs
BEGIN
    UPDATE job_counts SET jobs = jobs - 1 WHERE state = OLD.state;
END;

CREATE TABLE attempts (
    job_id     TEXT    NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    device     TEXT,
    worker_pid INTEGER,
    started_at TEXT    NOT NULL,
    ended_at   TEXT,
    outcome    TEXT    CHECK (outcome IN ('succeeded', 'failed', 'cancelled', 'lost')),
    cause      TEXT,
    PRIMARY KEY (job_id, number),
    CHECK ((ended_at IS NOT NULL) = (outcome IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE artifacts (
    id         TEXT    NOT NULL PRIMARY KEY,
    job_id     TEXT    NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt    INTEGER NOT NULL,
    idx        INTEGER NOT NULL,
    blake3     TEXT    NOT NULL,
    media_type TEXT    NOT NULL,
    width      INTEGER NOT NULL,
    height     INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    seed       INTEGER NOT NULL,
    path       TEXT    NOT NULL,
    created_at TEXT    NOT NULL,
    UNIQUE (job_id, idx)
) STRICT, WITHOUT ROWID;

-- Numbers are never used twice, also after rows were deleted: clients resume by them.
CREATE TABLE events (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT    NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    kind   TEXT    NOT NULL,
    data   TEXT    NOT NULL,
    at     TEXT    NOT NULL
) STRICT;

CREATE INDEX events_by_job ON events (job_id, id);

CREATE TABLE idempotency (
    owner      TEXT NOT NULL,
    key        TEXT NOT NULL,
    body_hash  TEXT NOT NULL,
    job_id     TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_at TEXT NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_age ON idempotency (created_at);
CREATE INDEX idempotency_by_job ON idempotency (job_id);

CREATE TABLE settings (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
