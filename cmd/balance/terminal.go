package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/term"

	"github.com/balanceai/balance/exec/task"
)

// terminal is the one that a person sits at, while it belongs to a run: each key
// goes to the run, but for those that detach.
type terminal struct {
	in    *os.File
	keys  []byte      // that detach
	taken atomic.Bool // by the run
	typed chan []byte
	undo  func() error
	once  sync.Once // of undo

	mu  sync.Mutex
	now *typing // of the newest request
}

// terminal returns the one at standard input, or nil where there is none.
func (a *app) terminal(keys []byte) *terminal {
	if a.in == nil || !term.IsTerminal(int(a.in.Fd())) {
		return nil
	}
	t := &terminal{in: a.in, keys: keys, typed: make(chan []byte)}
	a.print.err = lineEnds{a.print.err, &t.taken}
	return t
}

// errLeft says that the person has left the run with the keys for that.
var errLeft = errors.New("left")

// take gives the terminal to the run. leave is called with errLeft, or with
// errDetached where the terminal goes away.
func (t *terminal) take(ctx context.Context, leave context.CancelCauseFunc) error {
	state, err := term.MakeRaw(int(t.in.Fd()))
	if err != nil {
		return err
	}
	t.undo = func() error { return term.Restore(int(t.in.Fd()), state) }
	t.taken.Store(true)
	gone := make(chan os.Signal, 1)
	signal.Notify(gone, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		defer signal.Stop(gone)
		select {
		case <-ctx.Done():
		case <-gone:
			leave(errDetached)
		}
	}()
	go t.read(ctx, leave)
	return nil
}

// giveBack makes the terminal what it was.
func (t *terminal) giveBack() {
	if t == nil || !t.taken.Load() {
		return
	}
	t.once.Do(func() {
		_ = t.undo() // of a terminal that has gone nothing is left to see
		t.taken.Store(false)
	})
}

// read reads what is typed until ctx ends; a call that waits for a key stays
// behind.
func (t *terminal) read(ctx context.Context, leave context.CancelCauseFunc) {
	d := detacher{keys: t.keys}
	for {
		buf := make([]byte, 4<<10)
		n, err := t.in.Read(buf)
		out, leaves := d.pass(buf[:n])
		if len(out) > 0 {
			select {
			case t.typed <- out:
			case <-ctx.Done():
				return
			}
		}
		switch {
		case leaves:
			leave(errLeft)
			return
		case err != nil:
			leave(errDetached)
			return
		}
	}
}

func (t *terminal) size() task.Terminal {
	cols, rows, err := term.GetSize(int(t.in.Fd()))
	if err != nil {
		return defaultSize
	}
	return task.Terminal{Rows: uint16(rows), Cols: uint16(cols)}
}

// defaultSize is that of a terminal that nobody sits at yet.
var defaultSize = task.Terminal{Rows: 24, Cols: 80}

// typing reads for one request what is typed.
type typing struct {
	typed  <-chan []byte
	rest   []byte
	closed chan struct{}
	once   sync.Once
}

func (t *terminal) typing() *typing {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = &typing{typed: t.typed, closed: make(chan struct{})}
	return t.now
}

// cut ends the request that waits for a key. A request does not see by itself
// that the node has gone, and would take the next key with it.
func (t *terminal) cut() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now != nil {
		_ = t.now.Close()
	}
}

func (t *typing) Read(p []byte) (int, error) {
	if len(t.rest) == 0 {
		select {
		case t.rest = <-t.typed:
		case <-t.closed:
			return 0, os.ErrClosed
		}
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// Close ends a Read that waits, so that the next request gets what is typed.
func (t *typing) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

// detacher finds the keys that detach in what is typed. What may be the begin of
// them is held back until the next key.
type detacher struct {
	keys []byte
	held []byte
}

// pass returns what goes to the run, and whether the keys were there.
func (d *detacher) pass(in []byte) (out []byte, leaves bool) {
	for _, b := range in {
		d.held = append(d.held, b)
		for !bytes.HasPrefix(d.keys, d.held) {
			out = append(out, d.held[0])
			d.held = d.held[1:]
		}
		if len(d.held) == len(d.keys) {
			return out, true
		}
	}
	return out, false
}

// defaultDetach are the keys that detach unless a person wants others.
const defaultDetach = "ctrl-p,ctrl-q"

// parseKeys reads keys as docker has them: characters, or ctrl- and one of them,
// with commas between.
func parseKeys(s string) ([]byte, error) {
	var keys []byte
	for word := range strings.SplitSeq(s, ",") {
		name, ctrl := strings.CutPrefix(word, "ctrl-")
		switch {
		case len(name) != 1:
			return nil, fail("usage", "for example: --detach-keys ctrl-p,ctrl-q", "%q is no key that detaches", word)
		case !ctrl:
			keys = append(keys, name[0])
		case 'a' <= name[0] && name[0] <= 'z', '@' <= name[0] && name[0] <= '_':
			keys = append(keys, name[0]&0x1f)
		default:
			return nil, fail("usage", "for example: --detach-keys ctrl-p,ctrl-q", "there is no key %s", word)
		}
	}
	return keys, nil
}

// lineEnds lets text begin at the left of a terminal that a run has taken.
type lineEnds struct {
	w     io.Writer
	taken *atomic.Bool
}

func (l lineEnds) Write(p []byte) (int, error) {
	if !l.taken.Load() {
		return l.w.Write(p)
	}
	if _, err := l.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}
