package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"syscall"

	"github.com/mattn/go-sqlite3"
)

// writerPragmas are those that the address of a database cannot hold.
var writerPragmas = []string{
	"PRAGMA fullfsync = ON", // macOS: fsync alone stops at the disk's cache
	"PRAGMA checkpoint_fullfsync = ON",
	"PRAGMA journal_size_limit = 67108864", // of the -wal file after a checkpoint, bytes
}

//go:embed migration/*.sql
var migrations embed.FS

// schemaVersion is the number of the newest file in migration, which turns the
// schema before it into this one.
const schemaVersion = 2

// maxReaders bounds the pool of readers. Each keeps a cache.
const maxReaders = 4

// dsn is the address of a database with the pragmas of a connection to it. FULL
// because in WAL mode a commit with NORMAL is not on the disk yet: a power cut
// would take back entries that others hold already.
func dsn(path string, readOnly bool) string {
	q := url.Values{
		"_busy_timeout":    {"10000"}, // milliseconds; another process may write
		"_journal_mode":    {"WAL"},
		"_synchronous":     {"FULL"},
		"_query_only":      {strconv.FormatBool(readOnly)},
		"_cache_size":      {"-1000"}, // KiB
		"_stmt_cache_size": {"64"},
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

func openWriter(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite3", dsn(path, false))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	for _, p := range writerPragmas {
		if _, err := db.Exec(p); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	return db, nil
}

func openReaders(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite3", dsn(path, true))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(maxReaders)
	db.SetMaxIdleConns(maxReaders)
	return db, nil
}

// migrate brings the schema to schemaVersion, each step in a transaction.
func migrate(ctx context.Context, conn *sql.Conn) error {
	var version int
	if err := conn.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	if version > schemaVersion {
		return fmt.Errorf("%w (schema %d, this one knows %d)", ErrNewer, version, schemaVersion)
	}
	for version++; version <= schemaVersion; version++ {
		script, err := migrations.ReadFile(fmt.Sprintf("migration/%d.sql", version))
		if err != nil {
			return err
		}
		step := fmt.Sprintf("BEGIN IMMEDIATE;\n%s\nPRAGMA user_version = %d;\nCOMMIT", script, version)
		if _, err := conn.ExecContext(ctx, step); err != nil {
			return fmt.Errorf("bring the schema to version %d: %w", version, err)
		}
	}
	return nil
}

// explain names the operation and the file in an error, and says what a person
// can do where SQLite speaks of a full disk or of damage.
func (s *Store) explain(op string, err error) error {
	if err == nil {
		return nil
	}
	full := false
	if e, ok := errors.AsType[sqlite3.Error](err); ok {
		full = e.Code == sqlite3.ErrFull || e.SystemErrno == syscall.ENOSPC || e.SystemErrno == syscall.EDQUOT
	}
	switch {
	case full:
		err = fmt.Errorf("%w (%w)", ErrDiskFull, err)
	case damage(err) && !errors.Is(err, ErrDamaged):
		err = fmt.Errorf("%w (%w)", ErrDamaged, err)
	}
	return fmt.Errorf("%s %s: %w", op, s.path, err)
}
