package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// fake is a [Runner] in memory, in which a test writes what happens.
type fake struct {
	refusal *task.Refusal // of every order

	mu      sync.Mutex
	runs    map[string]*fakeRun
	changed chan struct{}
	bid     task.Bid // the last one
	left    int      // calls of Start and Follow that have returned
}

type fakeRun struct {
	order    task.Order
	events   []*task.Event
	stdin    bytes.Buffer
	eof      bool
	cancels  []bool
	size     task.Terminal
	went     bool
	settled  []*wire.Entry
	finished bool
}

func newFake() *fake { return &fake{runs: map[string]*fakeRun{}, changed: make(chan struct{})} }

func (f *fake) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// happen appends events to a run, which the first one begins.
func (f *fake) happen(run string, events ...*task.Event) {
	f.update(func() {
		r := f.runs[run]
		if r == nil {
			r = &fakeRun{}
			f.runs[run] = r
		}
		for _, e := range events {
			e.Seq = uint64(len(r.events) + 1)
			r.events = append(r.events, e)
			r.finished = r.finished || e.Type == task.EventFinished
		}
	})
}

// wait waits until what it is told about a run holds.
func (f *fake) wait(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		ok, changed := holds(), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("waited in vain for " + what)
		}
	}
}

func (f *fake) Start(ctx context.Context, order task.Order, yield func(*task.Event) error) error {
	if f.refusal != nil {
		return f.refusal
	}
	f.update(func() {
		if f.runs[order.Run] == nil {
			f.runs[order.Run] = &fakeRun{}
		}
		f.runs[order.Run].order = order
	})
	return f.Follow(ctx, order.Run, 0, yield)
}

func (f *fake) Reserve(ctx context.Context, bid task.Bid, yield func(*task.Event) error) error {
	defer f.update(func() { f.left++ })
	f.update(func() { f.bid = bid })
	if f.refusal != nil {
		return f.refusal
	}
	if err := yield(&task.Event{Seq: 1, Type: task.EventHeld, Run: bid.Run, Facts: []byte{1, 2}}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) Follow(ctx context.Context, run string, after uint64, yield func(*task.Event) error) error {
	defer f.update(func() { f.left++ })
	for {
		f.mu.Lock()
		r, changed := f.runs[run], f.changed
		if r == nil {
			f.mu.Unlock()
			return task.ErrNoRun
		}
		news, finished := slices.Clone(r.events[min(after, uint64(len(r.events))):]), r.finished
		f.mu.Unlock()
		for _, e := range news {
			if err := yield(e); err != nil {
				return err
			}
			after = e.Seq
		}
		if finished {
			return nil
		}
		if len(news) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *fake) Stdin(_ context.Context, run string, offset int64, in io.Reader) error {
	f.mu.Lock()
	r := f.runs[run]
	f.mu.Unlock()
	if r == nil {
		return task.ErrNoRun
	}
	if have := int64(r.stdin.Len()); offset != have {
		return &task.OffsetError{Offset: have}
	}
	buf := make([]byte, 1000)
	for {
		n, err := in.Read(buf)
		var over bool
		f.update(func() {
			r.stdin.Write(buf[:n])
			r.eof = errors.Is(err, io.EOF)
			over = r.finished
		})
		switch {
		case over || errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (f *fake) Go(_ context.Context, run string) error {
	err := task.ErrNoRun
	f.update(func() {
		if r := f.runs[run]; r != nil {
			r.went, err = true, nil
		}
	})
	return err
}

func (f *fake) Renew(_ context.Context, run string, attempt int, seen uint64) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch r := f.runs[run]; {
	case r == nil || r.order.Attempt != attempt:
		return 0, task.ErrNoRun
	case r.finished:
		return 0, lease.ErrLapsed
	}
	return seen + 1, nil
}

func (f *fake) Resize(_ context.Context, run string, size task.Terminal) error {
	err := task.ErrNoRun
	f.update(func() {
		if r := f.runs[run]; r != nil {
			r.size, err = size, nil
		}
	})
	return err
}

func (f *fake) Files(_ context.Context, run, path string, w io.Writer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.runs[run] == nil {
		return task.ErrNoRun
	}
	switch path {
	case "none":
		return fs.ErrNotExist
	case "half":
		_, err := w.Write(make([]byte, 100_000))
		return errors.Join(err, errors.New("it became shorter"))
	}
	_, err := io.WriteString(w, "archive of "+path)
	return err
}

func (f *fake) Cancel(_ context.Context, run string, force bool) error {
	var err error
	f.update(func() {
		if r := f.runs[run]; r == nil {
			err = task.ErrNoRun
		} else {
			r.cancels = append(r.cancels, force)
		}
	})
	return err
}

func (f *fake) Settle(_ context.Context, run string, entries []*wire.Entry) error {
	var err error
	f.update(func() {
		if r := f.runs[run]; r == nil {
			err = task.ErrNoRun
		} else {
			r.settled = entries
		}
	})
	return err
}

const run1 = "r-aaaaaaaaaaaaaaaa"

var (
	key  = identity.KeyFromSeed([32]byte{1})
	peer = key.ID()
	self = identity.KeyFromSeed([32]byte{2}).ID()
)

func entry(t testing.TB, kind string) *wire.Entry {
	t.Helper()
	payload, err := wire.Marshal(task.Cancel{Reason: kind})
	if err != nil {
		t.Fatal(err)
	}
	e, err := wire.NewEntry(key, identity.MeshID{1}, wire.Body{Topic: run1, Segment: 1, Kind: kind, Millis: 1, Payload: payload})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func output(b []byte) *task.Event {
	e := &task.Event{Type: task.EventOutput, Run: run1, Time: time.Unix(1_700_000_000, 5).UTC(), Stream: task.Stderr}
	e.SetOutput(b)
	return e
}

func finished(code int) *task.Event {
	return &task.Event{Type: task.EventFinished, Run: run1, State: task.Failed, ExitCode: &code, Outputs: "x"}
}
