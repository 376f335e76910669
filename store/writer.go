package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/balanceai/balance/mesh/wire"
)

// job is a write that waits for its turn. do may be called more than once; only
// the last call counts.
type job struct {
	do   func(*tx) error
	err  error
	done chan struct{} // closed when err is final
}

// tx is the transaction of whoever has the turn. What is done in it gets
// [context.Background]: it is not broken off in the middle.
type tx struct {
	*sql.Conn
	fresh []*wire.Entry // stored in it
}

// write runs do in a transaction and returns when it is durable or undone.
func (s *Store) write(ctx context.Context, do func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &job{do: do, done: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.queue = append(s.queue, j)
	s.mu.Unlock()
	select {
	case <-j.done:
	case s.turn <- struct{}{}:
		s.commitQueued()
		<-s.turn
	}
	return j.err
}

// commitQueued commits all that wait in one transaction. Where one of them
// fails, each gets a transaction of its own.
func (s *Store) commitQueued() {
	s.mu.Lock()
	batch := s.queue
	s.queue = nil
	s.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	fresh, err := s.transact(batch)
	if err != nil && len(batch) > 1 {
		for _, j := range batch {
			var more []*wire.Entry
			more, j.err = s.transact([]*job{j})
			fresh = append(fresh, more...)
		}
	} else {
		batch[0].err = err
	}
	for _, j := range batch {
		close(j.done)
	}
	if len(fresh) > 0 {
		for _, f := range s.onCommit {
			f(fresh)
		}
	}
}

func (s *Store) transact(batch []*job) (fresh []*wire.Entry, err error) {
	t := &tx{Conn: s.conn}
	if err := t.exec(`BEGIN IMMEDIATE`); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = t.exec(`ROLLBACK`) // fails where SQLite has rolled back by itself
		}
	}()
	for _, j := range batch {
		if err := j.do(t); err != nil {
			return nil, err
		}
	}
	if err := t.exec(`COMMIT`); err != nil {
		return nil, err
	}
	s.soil(t.fresh)
	return t.fresh, nil
}

func (t *tx) exec(query string, args ...any) error {
	_, err := t.ExecContext(context.Background(), query, args...)
	return err
}

// unexpected marks what cannot be unless the file was changed by another
// program.
func unexpected(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrDamaged)
}
