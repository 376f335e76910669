// Package store keeps what a node must not forget in one SQLite file: the
// ledger, the state of runs that follows from it, and a few facts that are this
// node's own. All SQL of the program is here.
//
// The ledger holds signed entries (see [wire.Body]): each author's entries in a
// topic form chains, one for each segment. [Store.Append] signs this node's own
// entries, [Store.Accept] takes other nodes'. What the store promises:
//
//   - An entry is durable when the call that stores it returns: a killed process
//     or a power cut loses nothing that was acknowledged.
//   - All entries of one call of Append are stored, or none.
//   - Nothing is stored that does not verify or does not continue its chain, so
//     what is stored of a chain has no holes.
//   - This node never gives one number to two entries. Each [Open] writes into a
//     new segment, so not after a backup was restored either, nor when two
//     processes have the file open.
//   - A full disk refuses writes with [ErrDiskFull] and harms nothing; writing
//     goes on when there is space.
//
// One connection writes and a pool of others reads. Callers that write at the
// same time share one transaction, and so one wait for the disk: whoever finds
// the writer free commits for all that wait. A caller alone waits for nobody.
// Once it has begun, a write is finished whatever its context says.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Store is an open ledger file. It is safe for concurrent use.
type Store struct {
	path    string
	key     identity.Key
	self    identity.ID
	now     func() time.Time
	mesh    atomic.Pointer[identity.MeshID]
	readers *sql.DB
	writer  *sql.DB // of one connection

	turn     chan struct{}         // holds a token while somebody writes
	conn     *sql.Conn             // the writer's; whoever has the turn uses it
	segment  uint64                // of own new entries; whoever has the turn uses it
	onCommit []func([]*wire.Entry) // whoever has the turn uses it

	mu     sync.Mutex
	queue  []*job // those that wait for a turn
	closed bool
	dirty  map[string]int // runs with entries that the projection does not have, and how many

	projecting sync.Mutex // held while the projection is brought up to date
}

// Errors of the store, for errors.Is.
var (
	ErrClosed    = errors.New("the ledger is closed")
	ErrNoMesh    = errors.New("this node belongs to no mesh yet")
	ErrOtherMesh = errors.New("this ledger belongs to another mesh")
	ErrDiskFull  = errors.New("the disk is full: nothing was written; free some space and try again")
	ErrDamaged   = errors.New("the ledger file is damaged: move it and its -wal file away, then put a backup in its place or join the mesh again")
	ErrNewer     = errors.New("the ledger was written by a newer version of balance: update this one")
	ErrNotFound  = errors.New("not found")
)

// Open opens the ledger in the file path and makes it, with mode 0600, where
// there is none. Own entries are signed with key.
func Open(ctx context.Context, path string, key identity.Key) (*Store, error) {
	return open(ctx, path, key, time.Now)
}

func open(ctx context.Context, path string, key identity.Key, now func() time.Time) (s *Store, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // SQLite would make it readable by others
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	f.Close()
	s = &Store{path: path, key: key, self: key.ID(), now: now, turn: make(chan struct{}, 1), dirty: map[string]int{}}
	if err := s.connect(ctx); err != nil {
		_ = s.Close()
		return nil, s.explain("open", err)
	}
	return s, nil
}

func (s *Store) connect(ctx context.Context) (err error) {
	if s.writer, err = openWriter(s.path); err != nil {
		return err
	}
	if s.conn, err = s.writer.Conn(ctx); err != nil {
		return err
	}
	if err := migrate(ctx, s.conn); err != nil {
		return err
	}
	if s.readers, err = openReaders(s.path); err != nil {
		return err
	}
	return s.start(ctx)
}

// start reads what the file says of itself and opens a segment.
func (s *Store) start(ctx context.Context) error {
	var mesh []byte
	if found, err := meta(ctx, s.conn, metaMesh, &mesh); err != nil {
		return err
	} else if found {
		if len(mesh) != len(identity.MeshID{}) {
			return unexpected("mesh id of %d bytes", len(mesh))
		}
		s.mesh.Store((*identity.MeshID)(mesh))
	}
	return s.write(ctx, func(t *tx) error {
		var last int64
		if _, err := meta(ctx, t, metaSegment, &last); err != nil {
			return err
		}
		s.segment = uint64(max(s.now().UnixNano(), last+1))
		if err := t.setMeta(metaSegment, int64(s.segment)); err != nil {
			return err
		}
		if err := s.refold(t); err != nil {
			return err
		}
		return s.recall(t)
	})
}

// Close ends all reading and writing. What was begun is finished.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.commitQueued()
	var errs []error
	if s.readers != nil {
		errs = append(errs, s.readers.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close()) // the last connection moves the -wal file into the database
	}
	return s.explain("close", errors.Join(errs...))
}

// Mesh returns the mesh that the ledger belongs to, if it has been founded or
// joined.
func (s *Store) Mesh() (identity.MeshID, bool) {
	if m := s.mesh.Load(); m != nil {
		return *m, true
	}
	return identity.MeshID{}, false
}

// OnCommit calls f with the entries of each transaction that stored some, own
// and others', in the order in which they were stored and once they are
// durable. Writers wait for f: it must return soon and must not write.
func (s *Store) OnCommit(f func(fresh []*wire.Entry)) {
	s.turn <- struct{}{}
	s.onCommit = append(s.onCommit, f)
	<-s.turn
}
