package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Append signs the drafts as this node's own entries, in one transaction, and
// returns them when they are durable.
func (s *Store) Append(ctx context.Context, drafts ...task.Draft) ([]*wire.Entry, error) {
	return s.Record(ctx, nil, drafts...)
}

// Record stores entries of others, as [Store.Accept] does, and this node's
// answer to them, as [Store.Append] does: all in one transaction, or nothing.
func (s *Store) Record(ctx context.Context, theirs []*wire.Entry, drafts ...task.Draft) ([]*wire.Entry, error) {
	mesh, ok := s.Mesh()
	if !ok {
		return nil, ErrNoMesh
	}
	theirs, bad := verified(mesh, inOrder(theirs))
	if len(bad) > 0 {
		return nil, fmt.Errorf("accept entries into %s: %w", s.path, errors.Join(bad...))
	}
	payloads := make([][]byte, len(drafts))
	for i, d := range drafts {
		var err error
		if payloads[i], err = wire.Marshal(d.Record); err != nil {
			return nil, fmt.Errorf("append %s to %s: %w", d.Kind, d.Topic, err)
		}
	}
	var out []*wire.Entry
	err := s.write(ctx, func(t *tx) error {
		out = out[:0]
		if err := s.takeAll(t, mesh, theirs); err != nil {
			return err
		}
		for i, d := range drafts {
			e, err := s.sign(t, mesh, wire.Body{Topic: d.Topic, Kind: d.Kind, Payload: payloads[i]})
			if err != nil {
				return err
			}
			if err := t.insert(e); err != nil {
				return err
			}
			out = append(out, e)
		}
		return nil
	})
	if err != nil {
		return nil, s.explain("append to", err)
	}
	return out, nil
}

// takeAll inserts entries in order, or none of them.
func (s *Store) takeAll(t *tx, mesh identity.MeshID, list []*wire.Entry) error {
	refused, err := walk(context.Background(), t, mesh, list,
		func(e *wire.Entry) error { return s.take(t, e) },
		func(e *wire.Entry) error { return refusal(e, wire.ErrFork) })
	return cmp.Or(err, errors.Join(refused...))
}

// sign makes the next entry of the own chain in the body's topic.
func (s *Store) sign(t *tx, mesh identity.MeshID, body wire.Body) (*wire.Entry, error) {
	end, err := tail(context.Background(), t, chain{body.Topic, s.self, s.segment})
	if err != nil {
		return nil, err
	}
	body.Segment, body.Seq, body.Prev = s.segment, end.next, end.prev
	body.Millis = s.now().UnixMilli()
	return wire.NewEntry(s.key, mesh, body)
}

func (t *tx) insert(e *wire.Entry) error {
	err := t.exec(`INSERT INTO entries (topic, author, segment, seq, kind, raw, sig) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		e.Topic, e.Author[:], int64(e.Segment), int64(e.Seq), e.Kind, e.Raw, e.Sig[:])
	if err != nil {
		return fmt.Errorf("store entry: %w", err)
	}
	t.fresh = append(t.fresh, e)
	return nil
}

// Entries returns the entries of a topic in the order of author, segment and
// number, so each author's are in the order of its chain.
func (s *Store) Entries(ctx context.Context, topic string) ([]*wire.Entry, error) {
	list, err := entries(ctx, s.readers, topic)
	return list, s.explain("read", err)
}

func entries(ctx context.Context, q querier, topic string) ([]*wire.Entry, error) {
	return query(ctx, q, `SELECT raw, sig FROM entries WHERE topic = ? ORDER BY author, segment, seq`, topic)
}

// List returns the entries that arrived last, the newest first: at most limit,
// of all topics where topic is empty.
func (s *Store) List(ctx context.Context, topic string, limit int) ([]*wire.Entry, error) {
	statement, args := `SELECT raw, sig FROM entries ORDER BY id DESC LIMIT ?`, []any{limit}
	if topic != "" {
		statement, args = `SELECT raw, sig FROM entries WHERE topic = ? ORDER BY id DESC LIMIT ?`, []any{topic, limit}
	}
	list, err := query(ctx, s.readers, statement, args...)
	return list, s.explain("read", err)
}

// Latest returns each author's newest entry of one kind in the topic
// [wire.TopicMesh].
func (s *Store) Latest(ctx context.Context, kind string) ([]*wire.Entry, error) {
	list, err := query(ctx, s.readers, `
		WITH RECURSIVE authors (id) AS (
			SELECT min(author) FROM entries WHERE topic = 'mesh' AND kind = ?1
			UNION ALL
			SELECT (SELECT min(author) FROM entries WHERE topic = 'mesh' AND kind = ?1 AND author > authors.id)
			FROM authors WHERE authors.id IS NOT NULL
		)
		SELECT raw, sig FROM authors CROSS JOIN entries ON entries.id = (
			SELECT id FROM entries WHERE topic = 'mesh' AND kind = ?1 AND author = authors.id
			ORDER BY segment DESC, seq DESC LIMIT 1)`, kind)
	return list, s.explain("read", err)
}

// query returns the entries of a statement that selects raw and sig.
func query(ctx context.Context, q querier, statement string, args ...any) ([]*wire.Entry, error) {
	rows, err := q.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*wire.Entry
	for rows.Next() {
		var raw, sig []byte
		if err := rows.Scan(&raw, &sig); err != nil {
			return nil, err
		}
		e, err := decode(raw, sig)
		if err != nil {
			return nil, unexpected("%w", err)
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

// decode makes an entry of its columns.
func decode(raw, sig []byte) (*wire.Entry, error) {
	if len(sig) != len(identity.Signature{}) {
		return nil, fmt.Errorf("signature of %d bytes", len(sig))
	}
	return wire.OpenEntry(raw, identity.Signature(sig))
}

// chain names the entries of one author in one topic and segment.
type chain struct {
	topic   string
	author  identity.ID
	segment uint64
}

func chainOf(e *wire.Entry) chain { return chain{e.Topic, e.Author, e.Segment} }

// end is where a chain goes on.
type end struct {
	next uint64    // number of the next entry
	prev wire.Hash // of the entry before it
}

func (e *end) advance(entry *wire.Entry) { *e = end{entry.Seq + 1, entry.Hash()} }

func tail(ctx context.Context, q querier, c chain) (end, error) {
	var seq int64
	var raw []byte
	err := q.QueryRowContext(ctx, `SELECT seq, raw FROM entries WHERE topic = ? AND author = ? AND segment = ? ORDER BY seq DESC LIMIT 1`,
		c.topic, c.author[:], int64(c.segment)).Scan(&seq, &raw)
	if errors.Is(err, sql.ErrNoRows) {
		return end{}, nil
	}
	if err != nil {
		return end{}, fmt.Errorf("read the end of a chain: %w", err)
	}
	return end{uint64(seq) + 1, (&wire.Entry{Raw: raw}).Hash()}, nil
}

// rawAt returns the signed bytes of one entry, or nil.
func rawAt(ctx context.Context, q querier, c chain, seq uint64) ([]byte, error) {
	var raw []byte
	err := q.QueryRowContext(ctx, `SELECT raw FROM entries WHERE topic = ? AND author = ? AND segment = ? AND seq = ?`,
		c.topic, c.author[:], int64(c.segment), int64(seq)).Scan(&raw)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read entry: %w", err)
	}
	return raw, nil
}
