package store

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"github.com/balanceai/balance/mesh/wire"
)

// Heads returns the end of each chain of a topic.
func (s *Store) Heads(ctx context.Context, topic string) ([]wire.Head, error) {
	// The last entry in the order of the index ends the last chain; the last
	// one below that chain ends the chain before it; and so on.
	list, err := query(ctx, s.readers, `
		WITH RECURSIVE heads (id) AS (
			SELECT (SELECT id FROM entries WHERE topic = ?1 ORDER BY author DESC, segment DESC, seq DESC LIMIT 1)
			UNION ALL
			SELECT coalesce(
				(SELECT id FROM entries WHERE topic = ?1 AND author = e.author AND segment < e.segment ORDER BY segment DESC, seq DESC LIMIT 1),
				(SELECT id FROM entries WHERE topic = ?1 AND author < e.author ORDER BY author DESC, segment DESC, seq DESC LIMIT 1))
			FROM heads JOIN entries e ON e.id = heads.id
		)
		SELECT raw, sig FROM heads CROSS JOIN entries ON entries.id = heads.id`, topic)
	if err != nil {
		return nil, s.explain("read", err)
	}
	evidence, err := s.Forks(ctx, topic)
	if err != nil {
		return nil, err
	}
	forks := map[chain]*uint64{}
	for _, e := range evidence {
		forks[chainOf(e)] = &e.Seq
	}
	heads := make([]wire.Head, len(list))
	for i, e := range list {
		heads[i] = wire.Head{Author: e.Author, Segment: e.Segment, Seq: e.Seq, Hash: e.Hash(), Fork: forks[chainOf(e)]}
	}
	slices.SortFunc(heads, func(a, b wire.Head) int {
		return cmp.Or(bytes.Compare(a.Author[:], b.Author[:]), cmp.Compare(a.Segment, b.Segment))
	})
	return heads, nil
}

// Since returns what a node with these heads lacks of a topic, in the order of
// the chains and about limit entries at most. To get the rest, ask again with
// the heads brought up to date. Where the other node holds another branch of a
// chain, it gets this one from its start on, so that it finds the evidence;
// where it only lacks the evidence, that.
func (s *Store) Since(ctx context.Context, topic string, heads []wire.Head, limit int) ([]*wire.Entry, error) {
	theirs := make(map[chain]*wire.Head, len(heads))
	for i, h := range heads {
		theirs[chain{topic, h.Author, h.Segment}] = &heads[i]
	}
	ours, err := s.Heads(ctx, topic)
	if err != nil {
		return nil, err
	}
	var out []*wire.Entry
	for _, our := range ours {
		if len(out) >= limit {
			break
		}
		c := chain{topic, our.Author, our.Segment}
		more, err := s.lacks(ctx, c, our, theirs[c], limit-len(out))
		if err != nil {
			return nil, s.explain("read", err)
		}
		out = append(out, more...)
	}
	return out, nil
}

// lacks returns what a node lacks of one chain. their is nil where it has
// nothing of it.
func (s *Store) lacks(ctx context.Context, c chain, our wire.Head, their *wire.Head, limit int) ([]*wire.Entry, error) {
	from, to := uint64(0), our.Seq
	if our.Fork != nil {
		to = *our.Fork // what comes after it counts for nothing
	}
	switch {
	case their == nil:
	case their.Fork != nil && (our.Fork == nil || *their.Fork <= *our.Fork):
		return nil, nil
	case our.Fork != nil:
		from = min(*our.Fork, their.Seq+1)
	case their.Seq > our.Seq, their.Seq == our.Seq && their.Hash == our.Hash:
		return nil, nil
	default:
		raw, err := rawAt(ctx, s.readers, c, their.Seq)
		if err != nil {
			return nil, err
		}
		if (&wire.Entry{Raw: raw}).Hash() == their.Hash {
			from = their.Seq + 1
		}
	}
	list, err := query(ctx, s.readers,
		`SELECT raw, sig FROM entries WHERE topic = ? AND author = ? AND segment = ? AND seq BETWEEN ? AND ? ORDER BY seq LIMIT ?`,
		c.topic, c.author[:], int64(c.segment), int64(from), int64(to), limit)
	if err != nil || our.Fork == nil || len(list) == 0 || list[len(list)-1].Seq != to {
		return list, err
	}
	evidence, err := forkOf(ctx, s.readers, c)
	return append(list, evidence), err
}
