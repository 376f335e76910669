package tui

import (
	"context"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/balanceai/balance/exec/task"
)

// doer makes a command of work that waits. The context ends with the screen.
type doer func(work func(context.Context) tea.Msg) tea.Cmd

// jobs counts the commands at work, so that none outlives the screen.
type jobs struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// scope returns a doer whose work ends with ctx or when it is cancelled.
func (j *jobs) scope(ctx context.Context) (doer, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	return func(work func(context.Context) tea.Msg) tea.Cmd {
		return func() tea.Msg {
			if !j.begin() {
				return nil
			}
			defer j.wg.Done()
			return work(ctx)
		}
	}, cancel
}

func (j *jobs) begin() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		j.wg.Add(1)
	}
	return !j.closed
}

// wait waits for the commands at work; others do not start.
func (j *jobs) wait() {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.wg.Wait()
}

// reply is a message that brings something back: it knows what to do with it.
type reply interface{ apply(m *model) tea.Cmd }

const (
	retryAfter   = time.Second            // between attempts to reach the node
	requestLimit = 10 * time.Second       // for one answer
	pictureEvery = 400 * time.Millisecond // at most that often a new picture of the mesh
	gatherFor    = 20 * time.Millisecond  // events that come together are drawn together
	gatherMost   = 512                    // events
	runsLimit    = 500                    // runs that are listed
)

// request asks the node for something that has an end.
func (m *model) request(ask func(context.Context) tea.Msg) tea.Cmd {
	return m.do(func(ctx context.Context) tea.Msg {
		ctx, cancel := context.WithTimeout(ctx, requestLimit)
		defer cancel()
		return ask(ctx)
	})
}

// after sends msg when d has passed.
func (m *model) after(d time.Duration, msg tea.Msg) tea.Cmd {
	return m.do(func(ctx context.Context) tea.Msg {
		if !sleep(ctx, d) {
			return nil
		}
		return msg
	})
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watch follows the mesh. Of the pictures that come while one is drawn, only
// the newest is kept.
func (m *model) watch() tea.Cmd {
	m.watchNo++
	no := m.watchNo
	return m.do(func(ctx context.Context) tea.Msg {
		err := m.backend.Watch(ctx, func(mesh Mesh) {
			select {
			case <-m.pictures:
			default:
			}
			m.pictures <- picture{no, mesh} // has room: this is the only writer
		})
		if ctx.Err() != nil {
			return nil // the screen ends
		}
		return watchEnded{no, err}
	})
}

func (m *model) nextPicture(pause time.Duration) tea.Cmd {
	return m.do(func(ctx context.Context) tea.Msg {
		if !sleep(ctx, pause) {
			return nil
		}
		select {
		case p := <-m.pictures:
			return p
		case <-ctx.Done():
			return nil
		}
	})
}

// picture is what a watch has shown.
type picture struct {
	watch int
	mesh  Mesh
}

func (p picture) apply(m *model) tea.Cmd {
	if p.watch != m.watchOver {
		m.watchErr = nil
		m.take(p.mesh)
	}
	return m.nextPicture(pictureEvery)
}

type watchEnded struct {
	watch int
	err   error
}

func (e watchEnded) apply(m *model) tea.Cmd {
	m.watchOver = e.watch
	if m.watchErr = e.err; e.err == nil {
		m.watchErr = errSilent
	}
	return m.after(retryAfter, watchAgain{})
}

type watchAgain struct{}

func (watchAgain) apply(m *model) tea.Cmd { return m.watch() }

type second struct{}

func (second) apply(m *model) tea.Cmd {
	return tea.Batch(m.after(time.Second, second{}), m.page().tick())
}

// askRuns asks for the runs, unless an answer is due already.
func (m *model) askRuns() tea.Cmd {
	if m.runsAsked {
		return nil
	}
	m.runsAsked = true
	return m.request(func(ctx context.Context) tea.Msg {
		runs, err := m.backend.Runs(ctx, runsLimit)
		return runsAnswer{runs, err}
	})
}

type runsAnswer struct {
	runs []task.Status
	err  error
}

func (a runsAnswer) apply(m *model) tea.Cmd {
	m.runsAsked = false
	m.runsErr = a.err
	if a.err == nil {
		m.runs, m.runsAt = a.runs, m.now
		m.runRows = newRunRows(a.runs)
		m.list.refresh()
	}
	return nil
}

// follow is the stream of one run's events: one command reads it, another one
// hands over what has come. The reader waits while nobody takes.
type follow struct {
	run    string
	last   uint64 // the newest event that was shown
	events chan task.Event
	do     doer
	stop   context.CancelFunc
}

func (m *model) newFollow(run string) *follow {
	f := &follow{run: run, events: make(chan task.Event, gatherMost)}
	f.do, f.stop = m.scope()
	return f
}

// read reads the stream from where it was left.
func (f *follow) read(b Runner) tea.Cmd {
	after := f.last
	return f.do(func(ctx context.Context) tea.Msg {
		err := b.Events(ctx, f.run, after, func(e task.Event) {
			select {
			case f.events <- e:
			case <-ctx.Done():
			}
		})
		if ctx.Err() != nil {
			return nil // the run was left
		}
		return followEnded{f, err}
	})
}

// next waits for an event and what comes right after it.
func (f *follow) next() tea.Cmd {
	return f.do(func(ctx context.Context) tea.Msg {
		var got []task.Event
		var enough <-chan time.Time
		for len(got) < gatherMost {
			select {
			case e := <-f.events:
				if got == nil {
					t := time.NewTimer(gatherFor)
					defer t.Stop()
					enough = t.C
				}
				got = append(got, e)
			case <-enough:
				return followed{f, got}
			case <-ctx.Done():
				return nil
			}
		}
		return followed{f, got}
	})
}

type followed struct {
	*follow
	got []task.Event
}

func (f followed) apply(m *model) tea.Cmd {
	if m.run.follow != f.follow {
		return nil // of a run that was left
	}
	return tea.Batch(m.run.take(f.got), f.next())
}

type followEnded struct {
	*follow
	err error
}

func (e followEnded) apply(m *model) tea.Cmd {
	if m.run.follow != e.follow {
		return nil
	}
	m.run.followErr = e.err
	if e.err == nil {
		return nil // the run is over
	}
	return m.after(retryAfter, followAgain{e.follow})
}

type followAgain struct{ *follow }

func (a followAgain) apply(m *model) tea.Cmd {
	if m.run.follow != a.follow {
		return nil
	}
	return a.read(m.backend)
}
