package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/balanceai/balance/mesh/wire"
)

// Forks returns the evidence that authors of a topic gave one number to two
// entries: for each such chain the entry that is not among [Store.Entries],
// under the lowest number seen.
func (s *Store) Forks(ctx context.Context, topic string) ([]*wire.Entry, error) {
	list, err := query(ctx, s.readers, `SELECT raw, sig FROM forks WHERE topic = ? ORDER BY author, segment`, topic)
	return list, s.explain("read", err)
}

// forkOf returns the evidence of a fork in a chain, or nil.
func forkOf(ctx context.Context, q querier, c chain) (*wire.Entry, error) {
	var raw, sig []byte
	err := q.QueryRowContext(ctx, `SELECT raw, sig FROM forks WHERE topic = ? AND author = ? AND segment = ?`,
		c.topic, c.author[:], int64(c.segment)).Scan(&raw, &sig)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the evidence of a fork: %w", err)
	}
	e, err := decode(raw, sig)
	if err != nil {
		return nil, unexpected("%w", err)
	}
	return e, nil
}

func (t *tx) insertFork(e *wire.Entry) error {
	err := t.exec(`INSERT OR REPLACE INTO forks (topic, author, segment, seq, raw, sig) VALUES (?, ?, ?, ?, ?, ?)`,
		e.Topic, e.Author[:], int64(e.Segment), int64(e.Seq), e.Raw, e.Sig[:])
	if err != nil {
		return fmt.Errorf("store the evidence of a fork: %w", err)
	}
	return nil
}
