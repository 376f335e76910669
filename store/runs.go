package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// runsVersion is raised when [task.Fold] or the table runs changes meaning: the
// next Open then folds all runs anew.
const runsVersion = 5

// RunFilter selects runs. Its zero value selects all.
type RunFilter struct {
	Limit  int  // of the newest; 0 is no limit
	Active bool // those that are not final
	Own    bool // those that were submitted on this node

	Since time.Time // those that had not ended before; zero: at any time
}

// Runs returns runs, those submitted last first.
func (s *Store) Runs(ctx context.Context, f RunFilter) ([]task.Status, error) {
	if err := s.project(ctx); err != nil {
		return nil, err
	}
	statement := `SELECT status FROM runs`
	var where []string
	var args []any
	if f.Active {
		where = append(where, `final = 0`)
	}
	if f.Own {
		where = append(where, `own = 1`)
	}
	if !f.Since.IsZero() {
		where, args = append(where, `ended >= ?`), append(args, f.Since.UnixMilli())
	}
	if len(where) > 0 {
		statement += ` WHERE ` + strings.Join(where, ` AND `)
	}
	limit := f.Limit
	if limit == 0 {
		limit = -1
	}
	out, err := statuses(ctx, s.readers, statement+` ORDER BY submitted DESC, id LIMIT ?`, append(args, limit)...)
	return out, s.explain("read runs from", err)
}

// Run returns the state of one run, or [ErrNotFound].
func (s *Store) Run(ctx context.Context, id string) (task.Status, error) {
	if err := s.project(ctx); err != nil {
		return task.Status{}, err
	}
	found, err := statuses(ctx, s.readers, `SELECT status FROM runs WHERE id = ?`, id)
	if err != nil {
		return task.Status{}, s.explain("read run from", err)
	}
	if len(found) == 0 {
		return task.Status{}, fmt.Errorf("run %s: %w", id, ErrNotFound)
	}
	return found[0], nil
}

func statuses(ctx context.Context, q querier, statement string, args ...any) ([]task.Status, error) {
	rows, err := q.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []task.Status
	for rows.Next() {
		var text []byte
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		var st task.Status
		if err := json.Unmarshal(text, &st); err != nil {
			return nil, unexpected("state of a run: %v", err)
		}
		out = append(out, st)
	}
	return out, rows.Err()
}

// LastRun is the name under which [Store.FindRun] finds the run that this node
// submitted last.
const LastRun = "@last"

// Limits of [Store.FindRun].
const (
	minPrefix     = 3
	maxCandidates = 10
)

// AmbiguousError says that the beginning of an id fits several runs.
type AmbiguousError struct {
	Prefix     string
	Candidates []string // the first of them
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%q fits several runs: %s", e.Prefix, strings.Join(e.Candidates, ", "))
}

// FindRun returns the id that begins with prefix, with or without "r-", or that
// [LastRun] stands for. The error is [ErrNotFound] or an [*AmbiguousError].
func (s *Store) FindRun(ctx context.Context, prefix string) (string, error) {
	if prefix == LastRun {
		found, err := s.Runs(ctx, RunFilter{Limit: 1, Own: true})
		if err == nil && len(found) == 0 {
			err = fmt.Errorf("run %s: this node has submitted none: %w", prefix, ErrNotFound)
		}
		if err != nil {
			return "", err
		}
		if gang := found[0].Gang; gang != "" { // submitted for it, not by a person
			return gang, nil
		}
		return found[0].ID, nil
	}
	if err := s.project(ctx); err != nil {
		return "", err
	}
	rest := strings.TrimPrefix(strings.ToLower(prefix), "r-")
	if len(rest) < minPrefix {
		return "", fmt.Errorf("run %q: give at least %d characters of its id: %w", prefix, minPrefix, ErrNotFound)
	}
	from := "r-" + rest
	ids, err := s.ids(ctx, from, from+"\x7f") // ids are ASCII
	switch {
	case err != nil:
		return "", s.explain("find run in", err)
	case len(ids) == 0:
		return "", fmt.Errorf("run %q: %w", prefix, ErrNotFound)
	case len(ids) > 1:
		return "", &AmbiguousError{prefix, ids}
	}
	return ids[0], nil
}

func (s *Store) ids(ctx context.Context, from, to string) (ids []string, err error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT id FROM runs WHERE id >= ? AND id < ? ORDER BY id LIMIT ?`, from, to, maxCandidates)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// soil notes that runs have new entries. The projection gets them when it is
// read: a commit that somebody waits for is spared the work. The caller has the
// turn.
func (s *Store) soil(fresh []*wire.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range fresh {
		if task.ValidID(e.Topic) {
			s.dirty[e.Topic]++
		}
	}
}

// project brings the projection up to date. Where the disk is full it stays
// what it was: that is better than no answer.
func (s *Store) project(ctx context.Context) error {
	s.projecting.Lock()
	defer s.projecting.Unlock()
	s.mu.Lock()
	clean := len(s.dirty) == 0
	s.mu.Unlock()
	if clean {
		return nil
	}
	var done map[string]int
	err := s.write(ctx, func(t *tx) (err error) {
		s.mu.Lock()
		done = maps.Clone(s.dirty)
		s.mu.Unlock()
		for run := range done {
			if err := s.fold(t, run); err != nil {
				return err
			}
		}
		return s.mark(t)
	})
	if err = s.explain("project runs of", err); errors.Is(err, ErrDiskFull) {
		return nil
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for run, n := range done {
		if s.dirty[run] == n {
			delete(s.dirty, run)
		}
	}
	return nil
}

// mark notes that the projection has all entries that are stored now. Those of
// the same transaction are not in it.
func (s *Store) mark(t *tx) error {
	if len(t.fresh) > 0 {
		return nil // the next time
	}
	var last int64
	if err := t.QueryRowContext(context.Background(), `SELECT coalesce(max(id), 0) FROM entries`).Scan(&last); err != nil {
		return err
	}
	return t.setMeta(metaProjected, last)
}

// recall finds the runs whose entries the projection did not get in the last
// life.
func (s *Store) recall(t *tx) error {
	var last int64
	if _, err := meta(context.Background(), t, metaProjected, &last); err != nil {
		return err
	}
	topics, err := runTopics(t, last)
	for _, run := range topics {
		s.dirty[run]++
	}
	return err
}

// fold stores what the entries of a run add up to. While they do not add up,
// because the submitter's are not here yet or one is nonsense, what was stored
// before stays.
func (s *Store) fold(t *tx, run string) error {
	list, err := entries(context.Background(), t, run)
	if err != nil {
		return err
	}
	st, err := task.Fold(run, list)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	text, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("run %s: %w", run, err)
	}
	ended := int64(math.MaxInt64)
	if st.State.Final() {
		ended = max(st.Finished.UnixMilli(), 0)
	}
	return t.exec(`
		INSERT INTO runs (id, submitted, own, final, ended, status) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET submitted = excluded.submitted, own = excluded.own, final = excluded.final, ended = excluded.ended, status = excluded.status`,
		run, st.Submitted.UnixMilli(), st.Submitter == s.self || st.For == s.self, st.State.Final(), ended, string(text))
}

// refold makes the projection anew where an older version of the program made
// it.
func (s *Store) refold(t *tx) error {
	var version int
	if _, err := meta(context.Background(), t, metaRuns, &version); err != nil || version == runsVersion {
		return err
	}
	if err := t.exec(`DELETE FROM runs`); err != nil {
		return err
	}
	topics, err := runTopics(t, 0)
	if err != nil {
		return err
	}
	for _, run := range topics {
		if err := s.fold(t, run); err != nil {
			return err
		}
	}
	return errors.Join(s.mark(t), t.setMeta(metaRuns, runsVersion))
}

// runTopics returns the runs that have entries which came after one.
func runTopics(t *tx, after int64) (topics []string, err error) {
	rows, err := t.QueryContext(context.Background(), `SELECT DISTINCT topic FROM entries WHERE id > ? AND topic LIKE 'r-%'`, after)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var topic string
		if err := rows.Scan(&topic); err != nil {
			return nil, err
		}
		topics = append(topics, topic)
	}
	return topics, rows.Err()
}
