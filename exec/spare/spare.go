// Package spare makes files and folders ahead. To make one takes the disk
// longer than all else that comes before the start of a run; to rename one that
// is there takes next to nothing.
package spare

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// Names of spares begin with prefix. There are at most limit of them.
const (
	prefix = "spare-"
	limit  = 8
)

// Pool holds spares of one kind in one folder. It is safe for concurrent use.
type Pool struct {
	dir    string
	create func(path string) error
	last   atomic.Int64 // number of the newest
	ready  chan string
}

// New returns a pool of what create makes. It removes the spares of an earlier
// life from dir and makes a first one.
func New(dir string, create func(path string) error) (*Pool, error) {
	p := &Pool{dir: dir, create: create, ready: make(chan string, limit)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	p.Add()
	return p, nil
}

// Add makes a spare, unless there are enough. Where that fails, Take finds out
// why.
func (p *Pool) Add() {
	if len(p.ready) == limit {
		return
	}
	path := filepath.Join(p.dir, fmt.Sprint(prefix, p.last.Add(1)))
	if err := p.create(path); err != nil {
		os.RemoveAll(path)
		return
	}
	select {
	case p.ready <- path:
	default:
		os.RemoveAll(path)
	}
}

// Take makes a spare into path, which does not exist. Where there is none, it
// makes path.
func (p *Pool) Take(path string) error {
	select {
	case spare := <-p.ready:
		return os.Rename(spare, path)
	default:
		return p.create(path)
	}
}
