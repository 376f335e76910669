package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// One suite, for a runner here and for the same runner at the other end of the
// protocol.
func TestContract(t *testing.T) {
	t.Run("local", func(t *testing.T) { testRunner(t, func(_ *testing.T, f *fake) Runner { return f }) })
	t.Run("remote", func(t *testing.T) {
		testRunner(t, func(t *testing.T, f *fake) Runner { return serve(t, &Server{Runner: f}).client })
	})
}

// lab is a server and a client for it.
type lab struct {
	server *http.Server
	addr   string
	http   *http.Client
	client *Client
}

// serve runs a server on loopback, which knows its one caller as peer.
func serve(t testing.TB, s *Server) *lab {
	t.Helper()
	s.Self = self
	if s.Caller == nil {
		s.Caller = func(*http.Request) (identity.ID, bool) { return peer, true }
	}
	if s.Submitted == nil {
		s.Submitted = func(context.Context, string, identity.ID) bool { return true }
	}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{server: &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second}, addr: ln.Addr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.server.Serve(ln)
	}()
	l.http, l.client = clientOf(t, l.addr)
	t.Cleanup(func() {
		_ = l.server.Close()
		<-done
	})
	return l
}

// clientOf returns a client whose transport finds every node at addr.
func clientOf(t testing.TB, addr string) (*http.Client, *Client) {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
		MaxIdleConnsPerHost: 16,
	}
	t.Cleanup(tr.CloseIdleConnections)
	h := &http.Client{Transport: tr}
	return h, NewClient(h, self)
}

func collect(got *[]*task.Event) func(*task.Event) error {
	return func(e *task.Event) error {
		*got = append(*got, e)
		return nil
	}
}

func testRunner(t *testing.T, connect func(*testing.T, *fake) Runner) {
	events := func() []*task.Event {
		return []*task.Event{
			{Type: task.EventStarted, Run: run1, Time: time.Unix(1_700_000_000, 0).UTC(), Attempt: 3, Node: "hydra", State: task.Running, Entries: [][]byte{{1, 2}, {3}}},
			output([]byte("plain <&> \u2028 text\n")),
			output([]byte("\xff\xfe\x00")),
			output(bytes.Repeat([]byte{7}, 32<<10)), // the longest form of 32 KiB
			{Type: task.EventNote, Run: run1, Message: "note"},
			finished(7),
		}
	}
	order := task.Order{Run: run1, Attempt: 3, From: peer, Entries: []*wire.Entry{entry(t, task.KindSubmit), entry(t, task.KindPlace)}}

	t.Run("start", func(t *testing.T) {
		f := newFake()
		want := events()
		f.happen(run1, want...)
		var got []*task.Event
		if err := connect(t, f).Start(t.Context(), order, collect(&got)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %d events", len(got))
			for i := range min(len(got), len(want)) {
				if !reflect.DeepEqual(got[i], want[i]) {
					t.Errorf("%+v\nwant %+v", got[i], want[i])
				}
			}
		}
		if arrived := f.runs[run1].order; !reflect.DeepEqual(arrived, order) {
			t.Errorf("order %+v\nwant %+v", arrived, order)
		}
	})

	t.Run("each event at once", func(t *testing.T) {
		f := newFake()
		seen := 0
		f.happen(run1, events()[0])
		err := connect(t, f).Follow(t.Context(), run1, 0, func(e *task.Event) error {
			seen++
			if e.Type != task.EventFinished { // the next comes only when this one has been seen
				next := output([]byte("more"))
				if seen == 20 {
					next = finished(0)
				}
				f.happen(run1, next)
			}
			return nil
		})
		if err != nil || seen != 21 {
			t.Errorf("%d events: %v", seen, err)
		}
	})

	t.Run("follow", func(t *testing.T) {
		f := newFake()
		want := events()
		f.happen(run1, want...)
		r := connect(t, f)
		for after := range len(want) + 2 {
			var got []*task.Event
			if err := r.Follow(t.Context(), run1, uint64(after), collect(&got)); err != nil {
				t.Fatal(err)
			}
			if len(got) != max(0, len(want)-after) || len(got) > 0 && got[0].Seq != uint64(after+1) {
				t.Errorf("after %d: %d events", after, len(got))
			}
		}
	})

	t.Run("refusal", func(t *testing.T) {
		f := newFake()
		f.refusal = &task.Refusal{
			Reasons: []task.Reason{{Rule: "cpu", Text: "needs 4 cores", Need: 4, Have: 1, Ever: true}, {Rule: "arch", Text: "arm64"}},
			Entries: []*wire.Entry{entry(t, task.KindRefused)},
		}
		err := connect(t, f).Start(t.Context(), order, collect(new([]*task.Event)))
		var got *task.Refusal
		if !errors.As(err, &got) || !reflect.DeepEqual(got, f.refusal) {
			t.Errorf("got %v", err)
		}
	})

	t.Run("reserve", func(t *testing.T) {
		f := newFake()
		r := connect(t, f)
		ctx, cancel := context.WithCancel(t.Context())
		bid := task.Bid{
			Run: run1, From: peer, Wait: true, Waited: 1500 * time.Millisecond, Claim: true,
			Spec: task.Spec{Driver: task.DriverProcess, Command: []string{"-"}, Needs: task.Needs{CPU: task.Core, GPUs: 2}, Priority: 3},
		}
		var got []*task.Event
		err := r.Reserve(ctx, bid, func(e *task.Event) error {
			got = append(got, e)
			cancel() // lets go
			return nil
		})
		if !errors.Is(err, context.Canceled) || len(got) != 1 || got[0].Type != task.EventHeld || !bytes.Equal(got[0].Facts, []byte{1, 2}) {
			t.Errorf("%d events, then %v", len(got), err)
		}
		f.wait(t, "the runner's call to end", func() bool { return f.left == 1 })
		if !reflect.DeepEqual(f.bid, bid) {
			t.Errorf("bid %+v\nwant %+v", f.bid, bid)
		}
		f.refusal = &task.Refusal{Reasons: []task.Reason{{Rule: "cpu", Ever: true}}, Entries: []*wire.Entry{}}
		var no *task.Refusal
		if err := r.Reserve(t.Context(), bid, nil); !errors.As(err, &no) || !reflect.DeepEqual(no, f.refusal) {
			t.Errorf("a refusal: %v", err)
		}
	})

	t.Run("no such run", func(t *testing.T) {
		r := connect(t, newFake())
		for name, err := range map[string]error{
			"follow": r.Follow(t.Context(), run1, 0, collect(new([]*task.Event))),
			"stdin":  r.Stdin(t.Context(), run1, 0, strings.NewReader("x")),
			"cancel": r.Cancel(t.Context(), run1, false),
			"settle": r.Settle(t.Context(), run1, nil),
		} {
			if !errors.Is(err, task.ErrNoRun) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})

	t.Run("yield ends it", func(t *testing.T) {
		f := newFake()
		f.happen(run1, output([]byte("x")), output([]byte("y")))
		enough := errors.New("enough")
		n := 0
		err := connect(t, f).Follow(t.Context(), run1, 0, func(*task.Event) error { n++; return enough })
		if !errors.Is(err, enough) || n != 1 {
			t.Errorf("%d events, then %v", n, err)
		}
		f.wait(t, "the runner's call to end", func() bool { return f.left == 1 })
	})

	t.Run("context ends it", func(t *testing.T) {
		f := newFake()
		f.happen(run1, output([]byte("x")))
		ctx, cancel := context.WithCancel(t.Context())
		err := connect(t, f).Start(ctx, order, func(*task.Event) error { cancel(); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		f.wait(t, "the runner's call to end", func() bool { return f.left == 1 })
	})

	t.Run("stdin", func(t *testing.T) {
		f := newFake()
		f.happen(run1)
		r := connect(t, f)
		pr, pw := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- r.Stdin(t.Context(), run1, 0, pr) }()
		for _, part := range []string{"one ", "two"} { // each arrives before the next is sent
			_, _ = pw.Write([]byte(part))
			f.wait(t, part, func() bool { return strings.HasSuffix(f.runs[run1].stdin.String(), part) })
		}
		broken := errors.New("the terminal is gone")
		pw.CloseWithError(broken)
		if err := <-done; err == nil {
			t.Error("a broken input passed for its end")
		}
		f.mu.Lock()
		if f.runs[run1].eof {
			t.Error("the runner took a broken input for its end")
		}
		f.mu.Unlock()
		var offset *task.OffsetError
		if err := r.Stdin(t.Context(), run1, 3, strings.NewReader("x")); !errors.As(err, &offset) || offset.Offset != 7 {
			t.Fatalf("wrong offset: %v", err)
		}
		if err := r.Stdin(t.Context(), run1, 7, strings.NewReader(" three")); err != nil {
			t.Fatal(err)
		}
		if got := f.runs[run1].stdin.String(); got != "one two three" || !f.runs[run1].eof {
			t.Errorf("got %q, eof %v", got, f.runs[run1].eof)
		}
	})

	t.Run("size", func(t *testing.T) {
		f := newFake()
		f.happen(run1)
		r := connect(t, f)
		want := task.Terminal{Rows: 0, Cols: math.MaxUint16}
		if err := r.Resize(t.Context(), run1, want); err != nil || f.runs[run1].size != want {
			t.Errorf("got %+v, %v", f.runs[run1].size, err)
		}
		if err := r.Resize(t.Context(), "r-bbbbbbbbbbbbbbbb", want); !errors.Is(err, task.ErrNoRun) {
			t.Errorf("no run: %v", err)
		}
	})

	t.Run("files", func(t *testing.T) {
		f := newFake()
		f.happen(run1)
		r := connect(t, f)
		var got bytes.Buffer
		if err := r.Files(t.Context(), run1, "a b/c&d", &got); err != nil || got.String() != "archive of a b/c&d" {
			t.Errorf("%q, %v", got.String(), err)
		}
		if err := r.Files(t.Context(), run1, "none", io.Discard); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("none: %v", err)
		}
		if err := r.Files(t.Context(), run1, "half", io.Discard); err == nil {
			t.Error("half passed for all")
		}
		if err := r.Files(t.Context(), "r-bbbbbbbbbbbbbbbb", "x", io.Discard); !errors.Is(err, task.ErrNoRun) {
			t.Errorf("no run: %v", err)
		}
	})

	t.Run("renew", func(t *testing.T) {
		f := newFake()
		f.happen(run1)
		f.runs[run1].order.Attempt = 3
		r := connect(t, f)
		for _, seen := range []uint64{0, 7, math.MaxUint64 - 1} {
			if next, err := r.Renew(t.Context(), run1, 3, seen); err != nil || next != seen+1 {
				t.Errorf("seen %d: %d, %v", seen, next, err)
			}
		}
		if _, err := r.Renew(t.Context(), run1, 2, 0); !errors.Is(err, task.ErrNoRun) {
			t.Errorf("another attempt: %v", err)
		}
		f.happen(run1, finished(0))
		if _, err := r.Renew(t.Context(), run1, 3, 0); !errors.Is(err, lease.ErrLapsed) {
			t.Errorf("a lease that ran out: %v", err)
		}
	})

	t.Run("go", func(t *testing.T) {
		f := newFake()
		f.happen(run1)
		r := connect(t, f)
		if err := r.Go(t.Context(), run1); err != nil || !f.runs[run1].went {
			t.Errorf("%v, went %v", err, f.runs[run1].went)
		}
		if err := r.Go(t.Context(), "r-zzzzzzzzzzzzzzzz"); !errors.Is(err, task.ErrNoRun) {
			t.Errorf("a run that is not there: %v", err)
		}
	})

	t.Run("cancel and settle", func(t *testing.T) {
		f := newFake()
		f.happen(run1)
		r := connect(t, f)
		for _, force := range []bool{false, true} {
			if err := r.Cancel(t.Context(), run1, force); err != nil {
				t.Fatal(err)
			}
		}
		want := []*wire.Entry{entry(t, task.KindReceipt)}
		if err := r.Settle(t.Context(), run1, want); err != nil {
			t.Fatal(err)
		}
		if got := f.runs[run1]; !slices.Equal(got.cancels, []bool{false, true}) || !reflect.DeepEqual(got.settled, want) {
			t.Errorf("got %v and %v", got.cancels, got.settled)
		}
	})
}
