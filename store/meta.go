package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Names in the table meta.
const (
	metaMesh    = "mesh"    // the mesh id, 32 bytes
	metaSegment = "segment" // no segment of own entries is above it
	metaRuns    = "runs"    // version of the projection runs

	metaProjected = "projected" // id of an entry; the projection has all up to it
)

// querier is a connection or a pool that reads.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// meta reads one value into dst and reports whether there is one.
func meta(ctx context.Context, q querier, name string, dst any) (bool, error) {
	err := q.QueryRowContext(ctx, `SELECT value FROM meta WHERE name = ?`, name).Scan(dst)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	return true, nil
}

func (t *tx) setMeta(name string, value any) error {
	return t.exec(`INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)`, name, value)
}
