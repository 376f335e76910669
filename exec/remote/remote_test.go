package remote

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

var order1 = task.Order{Run: run1, Attempt: 1}

func ignore(*task.Event) error { return nil }

// request sends a raw request and returns status and body.
func (l *lab) request(t *testing.T, method, path string, change func(*http.Request)) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+self.String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	resp, err := l.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// routes are requests that a member who submitted run1 may make.
var routes = []struct{ method, path string }{
	{http.MethodPut, "/v1/runs/" + run1 + "?attempt=1"},
	{http.MethodGet, "/v1/runs/" + run1 + "/events?after=0"},
	{http.MethodPost, "/v1/runs/" + run1 + "/stdin?offset=0"},
	{http.MethodPost, "/v1/runs/" + run1 + "/cancel"},
	{http.MethodPost, "/v1/runs/" + run1 + "/settle"},
	{http.MethodGet, "/v1/blobs/" + strings.Repeat("0", 64)},
	{http.MethodGet, "/"},
}

func TestStrangersGetNothing(t *testing.T) {
	f := newFake()
	f.happen(run1, finished(0))
	known := func(*http.Request) (identity.ID, bool) { return peer, true }
	for name, tc := range map[string]struct {
		caller func(*http.Request) (identity.ID, bool)
		change func(*http.Request)
	}{
		"no member":       {func(*http.Request) (identity.ID, bool) { return identity.ID{}, false }, nil},
		"another host":    {known, func(r *http.Request) { r.Host = "evil.example" }},
		"a browser":       {known, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }},
		"a null origin":   {known, func(r *http.Request) { r.Header.Set("Origin", "null") }},
		"overlay as host": {known, func(r *http.Request) { r.Host = "[fd00::1]" }},
	} {
		l := serve(t, &Server{Runner: f, Caller: tc.caller})
		for _, method := range []string{"", http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodOptions} {
			for _, route := range routes {
				if status, body := l.request(t, cmpOr(method, route.method), route.path, tc.change); status != http.StatusNotFound || body != "" {
					t.Errorf("%s: %s %s: %d %q", name, method, route.path, status, body)
				}
			}
		}
	}
	if r := f.runs[run1]; len(r.cancels) > 0 || r.settled != nil || r.order.Run != "" {
		t.Errorf("a stranger got through: %+v", r)
	}
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// A member that did not submit a run cannot tell it from one that is not there.
func TestOthersRuns(t *testing.T) {
	f := newFake()
	f.happen(run1, output([]byte("secret")), finished(0))
	l := serve(t, &Server{Runner: f, Submitted: func(_ context.Context, run string, by identity.ID) bool { return run == run1 && by != peer }})
	_, missing := l.request(t, http.MethodGet, "/v1/runs/r-bbbbbbbbbbbbbbbb/events?after=0", nil)
	for _, route := range routes[1:5] {
		if status, body := l.request(t, route.method, route.path, nil); status != http.StatusNotFound || body != missing {
			t.Errorf("%s: %d %q, want %q", route.path, status, body, missing)
		}
	}
	if len(f.runs[run1].cancels) > 0 {
		t.Error("another member's cancel was taken")
	}
}

func TestBadRequests(t *testing.T) {
	f := newFake()
	f.happen(run1, finished(0))
	l := serve(t, &Server{Runner: f})
	body := func(s string) func(*http.Request) {
		return func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(s)) }
	}
	for _, tc := range []struct {
		method, path string
		change       func(*http.Request)
		want         int
	}{
		{http.MethodPut, "/v1/runs/" + run1, body(`{}`), http.StatusBadRequest},
		{http.MethodPut, "/v1/runs/" + run1 + "?attempt=0", body(`{}`), http.StatusBadRequest},
		{http.MethodPut, "/v1/runs/mesh?attempt=1", body(`{}`), http.StatusBadRequest},
		{http.MethodPut, "/v1/runs/" + run1 + "?attempt=1", body(`{`), http.StatusBadRequest},
		{http.MethodPut, "/v1/runs/" + run1 + "?attempt=1", body(`{"entries":["AAAA"]}`), http.StatusBadRequest},
		{http.MethodPut, "/v1/runs/" + run1 + "?attempt=1", body(`{"entries":["` + strings.Repeat("A", maxEntries) + `"]}`), http.StatusBadRequest},
		{http.MethodPost, "/v1/runs/" + run1 + "/reserve", body(`{`), http.StatusBadRequest},
		{http.MethodPost, "/v1/runs/" + run1 + "/reserve", body(`{"waited_ms":-1}`), http.StatusBadRequest},
		{http.MethodGet, "/v1/runs/" + run1 + "/events", nil, http.StatusBadRequest},
		{http.MethodGet, "/v1/runs/..%2f..%2fetc/events?after=0", nil, http.StatusNotFound},
		{http.MethodGet, "/v1/runs/mesh/events?after=0", nil, http.StatusNotFound},
		{http.MethodPost, "/v1/runs/" + run1 + "/stdin?offset=-1", nil, http.StatusBadRequest},
		{http.MethodPost, "/v1/runs/" + run1 + "/settle", body(`[]`), http.StatusBadRequest},
		{http.MethodDelete, "/v1/runs/" + run1, nil, http.StatusMethodNotAllowed},
		{http.MethodGet, "/v1/blobs/" + strings.Repeat("A", 64), nil, http.StatusNotFound},
	} {
		if status, _ := l.request(t, tc.method, tc.path, tc.change); status != tc.want {
			t.Errorf("%s %s: %d, want %d", tc.method, tc.path, status, tc.want)
		}
	}
}

func TestUnreachable(t *testing.T) {
	_, c := clientOf(t, "127.0.0.1:1")
	if err := c.Start(t.Context(), order1, ignore); !errors.Is(err, task.ErrUnreachable) || errors.Is(err, task.ErrBroken) {
		t.Errorf("nobody listens: %v", err)
	}
	l := serve(t, &Server{Runner: newFake(), Caller: func(*http.Request) (identity.ID, bool) { return identity.ID{}, false }})
	if err := l.client.Start(t.Context(), order1, ignore); !errors.Is(err, task.ErrUnreachable) || errors.Is(err, task.ErrNoRun) {
		t.Errorf("not known as a member: %v", err)
	}
}

// raw answers each connection with what a peer may send, and then closes it, or
// stays silent.
func raw(t *testing.T, answer string, silent bool) *Client {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var conns []net.Conn
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns = append(conns, conn)
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
				continue
			}
			_, _ = io.WriteString(conn, answer)
			if !silent {
				conn.Close()
			}
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		for _, c := range conns {
			c.Close()
		}
	})
	_, c := clientOf(t, ln.Addr().String())
	c.silence = 300 * time.Millisecond
	return c
}

const okHeader = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

func TestBroken(t *testing.T) {
	const event = `{"seq":1,"type":"output","run":"` + run1 + `","time":"2026-01-01T00:00:00Z"}` + "\n"
	for name, tc := range map[string]struct {
		answer string
		silent bool
		events int
	}{
		"no answer":          {"", true, 0},
		"no header":          {"HTTP/1.1 2", true, 0},
		"closed":             {"", false, 0},
		"in an event":        {okHeader + chunk(event) + chunk(event[:20]), false, 1},
		"between events":     {okHeader + chunk(event), false, 1},
		"silent":             {okHeader + chunk(event), true, 1},
		"silent in an event": {okHeader + chunk(event) + chunk(event[:20]), true, 1},
		"no HTTP":            {"SSH-2.0-x\r\n\r\n", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			events := 0
			err := raw(t, tc.answer, tc.silent).Follow(t.Context(), run1, 0, func(*task.Event) error { events++; return nil })
			if !errors.Is(err, task.ErrBroken) || events != tc.events {
				t.Errorf("%d events, %v", events, err)
			}
		})
	}
}

func TestHostileMachine(t *testing.T) {
	for name, answer := range map[string]string{
		"endless line":   okHeader + chunk(strings.Repeat("x", maxLine+1)),
		"no JSON":        okHeader + chunk("hello\n"),
		"no event":       okHeader + chunk("{}\n"),
		"null":           okHeader + chunk("null\n"),
		"redirect":       "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://" + peer.String() + "/v1/x\r\nContent-Length: 0\r\n\r\n",
		"unknown answer": okHeader + chunk(`{"answer":{"code":"new"}}`+"\n"),
		"error":          "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
		"bad refusal":    "HTTP/1.1 409 Conflict\r\nContent-Length: 38\r\n\r\n" + `{"code":"refused","entries":["AAAAA"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			err := raw(t, answer, true).Start(t.Context(), order1, ignore)
			var refusal *task.Refusal
			if err == nil || errors.Is(err, task.ErrUnreachable) || errors.Is(err, task.ErrNoRun) || errors.As(err, &refusal) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A run that is quiet for longer than the client's patience keeps its stream.
func TestKeepAlive(t *testing.T) {
	f := newFake()
	f.happen(run1)
	l := serve(t, &Server{Runner: f, keepAlive: 20 * time.Millisecond})
	l.client.silence = 2 * time.Second
	quiet := time.AfterFunc(3*time.Second, func() { f.happen(run1, finished(0)) })
	defer quiet.Stop()
	var got []*task.Event
	if err := l.client.Follow(t.Context(), run1, 0, collect(&got)); err != nil || len(got) != 1 {
		t.Errorf("%d events, %v", len(got), err)
	}
}

// fakeCustody takes its time.
type fakeCustody struct {
	got       task.Handing
	cancelled string
}

func (c *fakeCustody) Keep(_ context.Context, h task.Handing) error {
	time.Sleep(200 * time.Millisecond)
	if c.got.Run != "" {
		return &task.Refusal{Reasons: []task.Reason{{Rule: "custody", Text: "slowly"}}}
	}
	c.got = h
	return nil
}

func (c *fakeCustody) CancelKept(_ context.Context, run string) error {
	c.cancelled = run
	return nil
}

// Who may give runs into custody gives them, however long that takes, and ends
// those that it has given and no others.
func TestCustody(t *testing.T) {
	kept := &fakeCustody{}
	may, gave := true, true
	l := serve(t, &Server{
		Runner: newFake(), keepAlive: 10 * time.Millisecond, Custody: kept,
		MayGive: func(identity.ID) bool { return may },
		Gave:    func(_ context.Context, run string, by identity.ID) bool { return gave && run == run1 && by == peer },
	})
	h := task.Handing{Run: run1, Entries: order1.Entries, Secrets: task.Secrets{"KEY": "value"}}
	if err := l.client.Keep(t.Context(), h); err != nil || kept.got.From != peer || kept.got.Run != run1 || kept.got.Secrets["KEY"] != "value" || len(kept.got.Entries) != len(h.Entries) {
		t.Errorf("it got %+v, %v", kept.got, err)
	}
	var refusal *task.Refusal
	if err := l.client.Keep(t.Context(), h); !errors.As(err, &refusal) || refusal.Reasons[0].Text != "slowly" {
		t.Errorf("got %v", err)
	}
	if err := l.client.CancelKept(t.Context(), run1); err != nil || kept.cancelled != run1 {
		t.Errorf("cancelled %q, %v", kept.cancelled, err)
	}
	kept.got, kept.cancelled, may, gave = task.Handing{}, "", false, false
	if err := l.client.Keep(t.Context(), h); !errors.As(err, &refusal) || kept.got.Run != "" {
		t.Errorf("from a stranger: %+v, %v", kept.got, err)
	}
	if err := l.client.CancelKept(t.Context(), run1); !errors.Is(err, task.ErrNoRun) || kept.cancelled != "" {
		t.Errorf("cancelled %q, %v", kept.cancelled, err)
	}
}

// slowFake refuses after a while, when the stream has begun with signs of life.
type slowFake struct{ *fake }

func (s slowFake) Start(context.Context, task.Order, func(*task.Event) error) error {
	time.Sleep(200 * time.Millisecond)
	return &task.Refusal{Reasons: []task.Reason{{Rule: "cpu", Text: "slowly"}}}
}

func TestRefusalInAStream(t *testing.T) {
	l := serve(t, &Server{Runner: slowFake{newFake()}, keepAlive: 10 * time.Millisecond})
	var refusal *task.Refusal
	if err := l.client.Start(t.Context(), order1, ignore); !errors.As(err, &refusal) || refusal.Reasons[0].Text != "slowly" {
		t.Errorf("got %v", err)
	}
}

// A run whose input is not read any more does not keep the sender waiting.
func TestStdinOfAFinishedRun(t *testing.T) {
	f := newFake()
	f.happen(run1)
	l := serve(t, &Server{Runner: f})
	pr, pw := io.Pipe()
	defer func() { _ = pw.Close() }()
	done := make(chan error, 1)
	go func() { done <- l.client.Stdin(t.Context(), run1, 0, pr) }()
	_, _ = pw.Write([]byte("x"))
	f.wait(t, "input", func() bool { return f.runs[run1].stdin.Len() == 1 })
	f.happen(run1, finished(0))
	_, _ = pw.Write([]byte("y")) // wakes the runner, which answers while the body is open
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("still sending")
	}
}

func TestManyRunsReuseConnections(t *testing.T) {
	f := newFake()
	var dials atomic.Int32
	l := serve(t, &Server{Runner: f})
	tr := l.http.Transport.(*http.Transport)
	dial := tr.DialContext
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return dial(ctx, network, addr)
	}
	for i := range 50 {
		run := fmt.Sprintf("r-aaaaaaaaaaaaaa%c%c", 'a'+i/26, 'a'+i%26)
		f.happen(run, finished(0))
		if err := l.client.Start(t.Context(), task.Order{Run: run, Attempt: 1}, ignore); err != nil {
			t.Fatal(err)
		}
		if err := l.client.Settle(t.Context(), run, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := dials.Load(); n > 5 { // one, but for a connection that was not back in time
		t.Errorf("%d connections", n)
	}
}

// file is a blob.
type file struct{ *bytes.Reader }

func (file) Close() error { return nil }

func TestBlob(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 50_000)
	have, denied := wire.Hash{1}, wire.Hash{2}
	l := serve(t, &Server{
		Runner: newFake(),
		Blob: func(h wire.Hash) (io.ReadSeekCloser, error) {
			if h == have || h == denied {
				return file{bytes.NewReader(content)}, nil
			}
			return nil, fmt.Errorf("blob: %w", fs.ErrNotExist)
		},
		Allowed: func(p identity.ID, h wire.Hash) bool { return p == peer && h != denied },
	})
	for _, offset := range []int{0, 1, 12345, len(content) - 1, len(content)} {
		body, err := l.client.Blob(t.Context(), have, int64(offset))
		if err != nil {
			t.Fatalf("at %d: %v", offset, err)
		}
		got, err := io.ReadAll(body)
		if cerr := body.Close(); err != nil || cerr != nil || !bytes.Equal(got, content[offset:]) {
			t.Errorf("at %d: %d bytes, %v, %v", offset, len(got), err, cerr)
		}
	}
	for _, h := range []wire.Hash{denied, {3}} {
		if _, err := l.client.Blob(t.Context(), h, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("blob %s: %v", h, err)
		}
	}
}

func TestBlobParts(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 10)
	l := serve(t, &Server{
		Runner:  newFake(),
		Allowed: func(identity.ID, wire.Hash) bool { return true },
		Blob: func(wire.Hash) (io.ReadSeekCloser, error) {
			return file{bytes.NewReader(content)}, nil
		},
	})
	if n, err := l.client.BlobSize(t.Context(), wire.Hash{1}); n != 100 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	body, err := l.client.Part(t.Context(), wire.Hash{1}, 95, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); string(got) != "567" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	for name, answer := range map[string]string{
		"no size":   "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/*\r\nContent-Length: 1\r\n\r\na",
		"odd size":  "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/-3\r\nContent-Length: 1\r\n\r\na",
		"no span":   "HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\na",
		"all of it": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
	} {
		if n, err := raw(t, answer, false).BlobSize(t.Context(), wire.Hash{1}); err == nil {
			t.Errorf("%s: size %d", name, n)
		}
	}
}

func TestBlobBroken(t *testing.T) {
	for name, silent := range map[string]bool{"closed": false, "silent": true} {
		body, err := raw(t, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", silent).Blob(t.Context(), wire.Hash{1}, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		body.Close()
		if string(got) != "abc" || !errors.Is(err, task.ErrBroken) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	whole := raw(t, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", false)
	if _, err := whole.Blob(t.Context(), wire.Hash{1}, 2); err == nil {
		t.Error("the start of a blob passed for its rest")
	}
}

func FuzzParseLine(f *testing.F) {
	for _, v := range []any{output([]byte("x")), output([]byte{0xff}), finished(1), map[string]any{"answer": answer{Code: codeOffset, Offset: 3}}} {
		b, err := encodeLine(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"answer":{"code":"refused","reasons":[{"rule":"cpu"}],"entries":["AA=="]}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseLine(b)
		if (e == nil) == (err == nil) {
			t.Fatalf("%v and %v", e, err)
		}
		if err != nil {
			return
		}
		again, err := encodeLine(e)
		if err != nil {
			return // longer than a line may be
		}
		if e2, err := parseLine(again); err != nil || !reflect.DeepEqual(e2, e) && e.Time.Equal(e2.Time) && string(e.Output()) != string(e2.Output()) {
			t.Fatalf("%+v became %+v: %v", e, e2, err)
		}
	})
}

func FuzzParseEntries(f *testing.F) {
	b, err := json.Marshal(entriesBody{Entries: encodeEntries([]*wire.Entry{entry(f, task.KindSubmit)}), Secrets: map[string]string{"KEY": "v"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"entries":["AAAA",null]}`))
	f.Add([]byte(`{"entries":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _, err := parseEntries(b)
		if err != nil {
			return
		}
		for _, e := range list {
			if e == nil || e.Topic == "" {
				t.Fatalf("%+v", e)
			}
		}
	})
}

func FuzzParseBid(f *testing.F) {
	b, err := json.Marshal(bidBody{Spec: task.Spec{Command: []string{"-"}, Needs: task.Needs{CPU: task.Core}}, Wait: true, WaitedMS: 5, Claim: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"waited_ms":9223372036854775807}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		bid, err := parseBid(b)
		if err == nil && (bid.Waited < 0 || bid.Waited > longestWait*time.Millisecond) {
			t.Fatalf("%+v", bid)
		}
	})
}

func BenchmarkStream(b *testing.B) {
	f := newFake()
	chunk := output(bytes.Repeat([]byte("0123456789abcde\n"), 2<<10))
	f.happen(run1, chunk, finished(0))
	l := serve(b, &Server{Runner: f})
	b.Run("noop", func(b *testing.B) {
		for b.Loop() {
			if err := l.client.Follow(b.Context(), run1, 1, ignore); err != nil {
				b.Fatal(err)
			}
		}
	})
	for range 1000 {
		f.runs[run1].events = append([]*task.Event{chunk}, f.runs[run1].events...)
	}
	b.Run("32KiB", func(b *testing.B) {
		b.SetBytes(1000 * 32 << 10)
		for b.Loop() {
			if err := l.client.Follow(b.Context(), run1, 0, ignore); err != nil {
				b.Fatal(err)
			}
		}
	})
}
