package remote

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Server answers other nodes for this one's runner. It belongs on a listener
// that only the mesh reaches, under /v1/runs/ and /v1/blobs/.
type Server struct {
	Self   identity.ID
	Runner Runner

	// Caller returns the member at the other end of the tunnel.
	Caller func(*http.Request) (identity.ID, bool)
	// Submitted reports whether by submitted a run that is here.
	Submitted func(ctx context.Context, run string, by identity.ID) bool
	// Custody takes runs of the nodes that may give it some. Gave reports whether
	// one has given a run that is here.
	Custody Custody
	MayGive func(identity.ID) bool
	Gave    func(ctx context.Context, run string, by identity.ID) bool
	// Blob opens a blob, or returns an error that is [fs.ErrNotExist].
	Blob func(h wire.Hash) (io.ReadSeekCloser, error)
	// Carried is told how many bytes of a blob a peer has got, and in which time.
	Carried func(peer identity.ID, n int64, in time.Duration)
	// Allowed reports whether a peer may have a blob.
	Allowed func(peer identity.ID, h wire.Hash) bool

	keepAlive time.Duration // the constant, but in tests
}

// handler answers a request of a peer for a run.
type handler func(w http.ResponseWriter, r *http.Request, run string)

type peerKey struct{}

// Handler returns the handler of the protocol.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/runs/{id}", s.start)
	mux.HandleFunc("POST /v1/runs/{id}/reserve", s.reserve)
	mux.HandleFunc("GET /v1/runs/{id}/events", s.own(s.follow))
	mux.HandleFunc("POST /v1/runs/{id}/stdin", s.own(s.stdin))
	mux.HandleFunc("POST /v1/runs/{id}/size", s.own(s.size))
	mux.HandleFunc("GET /v1/runs/{id}/files", s.own(s.files))
	mux.HandleFunc("POST /v1/runs/{id}/cancel", s.own(s.cancel))
	mux.HandleFunc("POST /v1/runs/{id}/go", s.own(s.release))
	mux.HandleFunc("POST /v1/runs/{id}/renew", s.own(s.renew))
	mux.HandleFunc("POST /v1/runs/{id}/settle", s.own(s.settle))
	mux.HandleFunc("PUT "+CustodyPath+"{id}", s.keep)
	mux.HandleFunc("DELETE "+CustodyPath+"{id}", s.cancelKept)
	mux.HandleFunc("GET /v1/blobs/{hash}", s.blob)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := s.Caller(r)
		if !ok || r.Host != s.Self.String() || r.Header.Get("Origin") != "" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer)))
	})
}

func peerOf(r *http.Request) identity.ID { return r.Context().Value(peerKey{}).(identity.ID) }

// own lets a request through if the peer submitted the run that it is about.
func (s *Server) own(next handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		run := r.PathValue("id")
		if !task.ValidID(run) || !s.Submitted(r.Context(), run, peerOf(r)) {
			fail(w, task.ErrNoRun)
			return
		}
		next(w, r, run)
	}
}

func (s *Server) start(w http.ResponseWriter, r *http.Request) {
	attempt, err := strconv.Atoi(r.URL.Query().Get("attempt"))
	if run := r.PathValue("id"); err != nil || attempt < 1 || !task.ValidID(run) {
		badRequest(w, fmt.Errorf("order: no run %q, attempt %q", run, r.URL.Query().Get("attempt")))
		return
	}
	entries, secrets, err := readEntries(w, r)
	if err != nil {
		badRequest(w, fmt.Errorf("order: %w", err))
		return
	}
	order := task.Order{Run: r.PathValue("id"), Attempt: attempt, From: peerOf(r), Entries: entries, Secrets: secrets}
	s.stream(w, r, func(ctx context.Context, yield func(*task.Event) error) error {
		return s.Runner.Start(ctx, order, yield)
	})
}

func (s *Server) keep(w http.ResponseWriter, r *http.Request) {
	entries, secrets, err := readEntries(w, r)
	if err != nil {
		badRequest(w, fmt.Errorf("custody: %w", err))
		return
	}
	if !s.MayGive(peerOf(r)) {
		fail(w, &task.Refusal{Reasons: []task.Reason{task.Reasonf("custody", "takes runs of its own owner's nodes into custody, and no others")}})
		return
	}
	h := task.Handing{Run: r.PathValue("id"), From: peerOf(r), Entries: entries, Secrets: secrets}
	s.stream(w, r, func(ctx context.Context, _ func(*task.Event) error) error { return s.Custody.Keep(ctx, h) })
}

func (s *Server) cancelKept(w http.ResponseWriter, r *http.Request) {
	run := r.PathValue("id")
	err := task.ErrNoRun
	if task.ValidID(run) && s.Gave(r.Context(), run, peerOf(r)) {
		err = s.Custody.CancelKept(r.Context(), run)
	}
	if err != nil {
		fail(w, err)
	}
}

func (s *Server) reserve(w http.ResponseWriter, r *http.Request) {
	bid, err := readBid(w, r)
	if err != nil {
		badRequest(w, fmt.Errorf("bid: %w", err))
		return
	}
	s.stream(w, r, func(ctx context.Context, yield func(*task.Event) error) error {
		return s.Runner.Reserve(ctx, bid, yield)
	})
}

func (s *Server) follow(w http.ResponseWriter, r *http.Request, run string) {
	after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		badRequest(w, fmt.Errorf("events: after: %w", err))
		return
	}
	s.stream(w, r, func(ctx context.Context, yield func(*task.Event) error) error {
		return s.Runner.Follow(ctx, run, after, yield)
	})
}

func (s *Server) stdin(w http.ResponseWriter, r *http.Request, run string) {
	// The answer may come while the peer still sends; the rest is not awaited.
	w.Header().Set("Connection", "close")
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil || offset < 0 {
		badRequest(w, fmt.Errorf("standard input: offset %q", r.URL.Query().Get("offset")))
		return
	}
	if err := s.Runner.Stdin(r.Context(), run, offset, r.Body); err != nil {
		fail(w, err)
	}
}

func (s *Server) size(w http.ResponseWriter, r *http.Request, run string) {
	q := r.URL.Query()
	rows, err1 := strconv.ParseUint(q.Get("rows"), 10, 16)
	cols, err2 := strconv.ParseUint(q.Get("cols"), 10, 16)
	if err := errors.Join(err1, err2); err != nil {
		badRequest(w, fmt.Errorf("size of a terminal: %w", err))
		return
	}
	if err := s.Runner.Resize(r.Context(), run, task.Terminal{Rows: uint16(rows), Cols: uint16(cols)}); err != nil {
		fail(w, err)
	}
}

func (s *Server) files(w http.ResponseWriter, r *http.Request, run string) {
	out := &Archive{W: &patientWriter{ResponseWriter: w, rc: http.NewResponseController(w)}}
	if err := out.End(s.Runner.Files(r.Context(), run, r.URL.Query().Get("path"), out)); err != nil {
		fail(w, err)
	}
}

// Archive is an answer that is written as it comes.
type Archive struct {
	W     http.ResponseWriter
	begun bool
}

func (a *Archive) Write(b []byte) (int, error) {
	if !a.begun {
		a.begun = true
		a.W.Header().Set("Content-Type", "application/x-tar")
	}
	return a.W.Write(b)
}

// End returns the error that is still to be answered. One that came too late for
// that breaks the answer off, so that nobody takes it for all.
func (a *Archive) End(err error) error {
	if err != nil && a.begun {
		panic(http.ErrAbortHandler)
	}
	return err
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request, run string) {
	if err := s.Runner.Cancel(r.Context(), run, r.URL.Query().Get("force") == "1"); err != nil {
		fail(w, err)
	}
}

func (s *Server) release(w http.ResponseWriter, r *http.Request, run string) {
	if err := s.Runner.Go(r.Context(), run); err != nil {
		fail(w, err)
	}
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request, run string) {
	attempt, err := strconv.Atoi(r.URL.Query().Get("attempt"))
	if err != nil {
		badRequest(w, fmt.Errorf("renewal: attempt: %w", err))
		return
	}
	seen, err := strconv.ParseUint(r.URL.Query().Get("seen"), 10, 64)
	if err != nil {
		badRequest(w, fmt.Errorf("renewal: seen: %w", err))
		return
	}
	next, err := s.Runner.Renew(r.Context(), run, attempt, seen)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(stampBody{next}) // a peer that has gone asks again
}

func (s *Server) settle(w http.ResponseWriter, r *http.Request, run string) {
	entries, _, err := readEntries(w, r)
	if err != nil {
		badRequest(w, fmt.Errorf("settlement: %w", err))
		return
	}
	if err := s.Runner.Settle(r.Context(), run, entries); err != nil {
		fail(w, err)
	}
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request) {
	h, err := wire.ParseHash(r.PathValue("hash"))
	if err != nil || !s.Allowed(peerOf(r), h) {
		fail(w, fs.ErrNotExist)
		return
	}
	f, err := s.Blob(h)
	if err != nil {
		fail(w, err)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	out := &patientWriter{ResponseWriter: w, rc: http.NewResponseController(w)}
	begin := time.Now()
	http.ServeContent(out, r, "", time.Time{}, f)
	if s.Carried != nil {
		s.Carried(peerOf(r), out.written, time.Since(begin))
	}
}

// patientWriter gives the peer time for each write, not for all together.
type patientWriter struct {
	http.ResponseWriter
	rc      *http.ResponseController
	written int64
}

func (p *patientWriter) Write(b []byte) (int, error) {
	_ = p.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := p.ResponseWriter.Write(b)
	p.written += int64(n)
	return n, err
}

// readEntries reads the body of an order or a settlement.
func readEntries(w http.ResponseWriter, r *http.Request) ([]*wire.Entry, task.Secrets, error) {
	b, err := readBody(w, r, maxEntries)
	if err != nil {
		return nil, nil, err
	}
	return parseEntries(b)
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(writeTimeout))
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }() // or the end of it would look like the peer's
	return io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
}

func readBid(w http.ResponseWriter, r *http.Request) (task.Bid, error) {
	b, err := readBody(w, r, maxLine)
	if err != nil {
		return task.Bid{}, err
	}
	bid, err := parseBid(b)
	bid.Run, bid.From = r.PathValue("id"), peerOf(r)
	return bid, err
}

// longestWait bounds what a peer may say that its run has waited, in milliseconds:
// what it says counts among its own runs alone, but must be a time.
const longestWait = 365 * 24 * 60 * 60 * 1000

func parseBid(b []byte) (task.Bid, error) {
	var body bidBody
	if err := json.Unmarshal(b, &body); err != nil {
		return task.Bid{}, err
	}
	if body.WaitedMS < 0 || body.WaitedMS > longestWait {
		return task.Bid{}, fmt.Errorf("it has waited %d ms", body.WaitedMS)
	}
	return task.Bid{Spec: body.Spec, Wait: body.Wait, Waited: time.Duration(body.WaitedMS) * time.Millisecond, Claim: body.Claim}, nil
}

func parseEntries(b []byte) ([]*wire.Entry, task.Secrets, error) {
	var body entriesBody
	if err := json.Unmarshal(b, &body); err != nil {
		return nil, nil, err
	}
	entries, err := decodeEntries(body.Entries)
	return entries, body.Secrets, err
}

func fail(w http.ResponseWriter, err error) {
	status, a := answerTo(err)
	reply(w, status, a)
}

func badRequest(w http.ResponseWriter, err error) {
	reply(w, http.StatusBadRequest, answer{Code: codeFailed, Error: err.Error()})
}

func reply(w http.ResponseWriter, status int, a answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(a) // a peer that has gone needs no answer
}

// stream sends what run yields, and then how it ended.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, run func(context.Context, func(*task.Event) error) error) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	st := newStream(w, cmp.Or(s.keepAlive, keepAlive), cancel)
	st.end(run(ctx, st.event))
}
