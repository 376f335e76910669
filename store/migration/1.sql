-- The signed entries. Every column but id repeats what raw says, for the
-- indexes; raw and sig are what counts. id is the order of arrival.
CREATE TABLE entries (
	id      INTEGER PRIMARY KEY,
	topic   TEXT    NOT NULL,
	author  BLOB    NOT NULL,
	segment INTEGER NOT NULL,
	seq     INTEGER NOT NULL,
	kind    TEXT    NOT NULL,
	raw     BLOB    NOT NULL,
	sig     BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX entries_chain ON entries (topic, author, segment, seq);
CREATE INDEX entries_kind ON entries (kind, author, segment, seq) WHERE topic = 'mesh';

-- Proof that an author gave one number to two entries: the one that is not in
-- entries. The lowest number of a chain is kept.
CREATE TABLE forks (
	topic   TEXT    NOT NULL,
	author  BLOB    NOT NULL,
	segment INTEGER NOT NULL,
	seq     INTEGER NOT NULL,
	raw     BLOB    NOT NULL,
	sig     BLOB    NOT NULL,
	PRIMARY KEY (topic, author, segment)
) STRICT, WITHOUT ROWID;

-- What the entries of each run's topic add up to: a projection.
CREATE TABLE runs (
	id        TEXT    NOT NULL UNIQUE,
	submitted INTEGER NOT NULL, -- submitter's clock, Unix milliseconds
	own       INTEGER NOT NULL, -- submitted by this node
	final     INTEGER NOT NULL,
	status    TEXT    NOT NULL  -- JSON of task.Status
) STRICT;
CREATE INDEX runs_newest ON runs (submitted DESC, id);
CREATE INDEX runs_active ON runs (submitted DESC, id) WHERE final = 0;

-- This file: the mesh id, the segment, the version of the projections.
CREATE TABLE meta (
	name  TEXT PRIMARY KEY,
	value ANY  NOT NULL
) STRICT, WITHOUT ROWID;

-- What only this node needs, and never leaves it.
CREATE TABLE settings (
	name  TEXT PRIMARY KEY,
	value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE addrs (
	peer BLOB    NOT NULL,
	addr TEXT    NOT NULL,
	seen INTEGER NOT NULL, -- Unix milliseconds
	PRIMARY KEY (peer, addr)
) STRICT, WITHOUT ROWID;
CREATE TABLE doors (
	join_id BLOB    PRIMARY KEY,
	wg      BLOB    NOT NULL,
	psk     BLOB    NOT NULL,
	expires INTEGER NOT NULL -- Unix milliseconds
) STRICT, WITHOUT ROWID;
