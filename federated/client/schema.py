"""The tables of a device's store: samples, models, answers to rounds, and Flower's messages.

`user_version` is the number of the schema; a store of a newer Penstock is refused, not guessed at.
"""

from __future__ import annotations

VERSION = 1

TABLES = """
CREATE TABLE facts (          -- about the data and the run: see store.Store
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL       -- JSON
) STRICT;

CREATE TABLE samples (
    id          INTEGER PRIMARY KEY,
    hash        BLOB NOT NULL UNIQUE,  -- SHA-256 of shape and values: the same window twice is one
    chunk       INTEGER,               -- of time; NULL: the one that is open when it is first used
    label       INTEGER,               -- NULL: not labelled
    shape       TEXT NOT NULL,         -- JSON
    data        BLOB NOT NULL,         -- float32, little endian
    exemplar    INTEGER NOT NULL DEFAULT 0,  -- outlives its chunk
    ingested_at REAL NOT NULL          -- Unix time
) STRICT;
CREATE INDEX samples_by_chunk ON samples (chunk, label);

CREATE TABLE models (
    name         TEXT PRIMARY KEY,     -- 'global': last received; 'teacher': before this chunk
    run          TEXT NOT NULL,
    round_number INTEGER NOT NULL,
    chunk        INTEGER NOT NULL,
    options      TEXT NOT NULL,        -- ModelOptions.to_json()
    ratio        REAL NOT NULL,
    arrays       BLOB NOT NULL,        -- npz
    sha256       TEXT NOT NULL,        -- arrays.digest
    saved_at     REAL NOT NULL
) STRICT;

CREATE TABLE answers (        -- what a round was answered: asked again, it is said again
    kind         TEXT NOT NULL,        -- train or evaluate
    run          TEXT NOT NULL,
    round_number INTEGER NOT NULL,
    asked        TEXT NOT NULL,        -- SHA-256 of task and arrays
    result       TEXT NOT NULL,        -- TrainResult.to_record() as JSON
    arrays       BLOB,                 -- npz
    answered_at  REAL NOT NULL,
    PRIMARY KEY (kind, run, round_number)
) STRICT;

CREATE TABLE messages (       -- the journal: see journal.Journal
    id          TEXT PRIMARY KEY,      -- Flower's
    state       TEXT NOT NULL CHECK (state IN ('announced', 'held', 'answered')),
    run_id      TEXT NOT NULL,         -- uint64, which SQLite has not
    kind        TEXT NOT NULL,
    expires_at  REAL NOT NULL,         -- Unix time
    head        BLOB NOT NULL,         -- protobuf, without content
    tree        BLOB NOT NULL,         -- protobuf: which objects belong to it
    attempts    INTEGER NOT NULL DEFAULT 0,  -- how often work on it was begun
    confirmed   INTEGER NOT NULL DEFAULT 0,
    seconds     REAL NOT NULL DEFAULT 0,     -- that the answer took
    reply_head  BLOB,
    reply_tree  BLOB,
    received_at REAL NOT NULL
) STRICT;

CREATE TABLE objects (        -- parts of messages; the id is the SHA-256 of the content
    message TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    reply   INTEGER NOT NULL,
    id      TEXT NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (message, reply, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE done (           -- messages that were answered and sent, or given up: for the status
    id       TEXT PRIMARY KEY,
    run_id   TEXT NOT NULL,
    kind     TEXT NOT NULL,
    outcome  TEXT NOT NULL,            -- sent, expired, gone or failed
    ended_at REAL NOT NULL
) STRICT;
"""
