package dispatch

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/remote"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// station serves a machine over HTTP and can be cut off.
type station struct {
	t      *testing.T
	server *remote.Server

	mu   sync.Mutex
	http *http.Server
	addr string
	done chan struct{}
}

func (s *station) up() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.addr == "" {
		s.addr = "127.0.0.1:0"
	}
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", s.addr)
	if err != nil {
		s.t.Error(err)
		return
	}
	srv, done := &http.Server{Handler: s.server.Handler(), ReadHeaderTimeout: 10 * time.Second}, make(chan struct{})
	s.addr, s.http, s.done = ln.Addr().String(), srv, done
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
}

// down cuts every connection.
func (s *station) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.http.Close()
	<-s.done
}

func (s *station) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	s.mu.Lock()
	addr := s.addr
	s.mu.Unlock()
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// overHTTP puts a machine of the lab behind the task protocol.
func (l *lab) overHTTP(t *testing.T, m *machine) *station {
	s := &station{t: t, server: &remote.Server{
		Self: m.id(), Runner: m,
		Caller:    func(*http.Request) (identity.ID, bool) { return l.cfg.Self, true },
		Submitted: func(context.Context, string, identity.ID) bool { return true },
	}}
	s.up()
	t.Cleanup(s.down)
	tr := &http.Transport{DialContext: s.dial, MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	l.byID[m.id()] = remote.NewClient(&http.Client{Transport: tr}, m.id())
	return s
}

func TestOverHTTP(t *testing.T) {
	l := newLab(t)
	l.overHTTP(t, l.hydra)
	if got := brief(l.end(l.submit(bare()))); got != allOfIt {
		t.Errorf("got %s", got)
	}
	l.hydra.refusal = []task.Reason{{Rule: "terms", Text: "no"}}
	id := l.submit(bare())
	if got := brief(l.end(id)); !strings.HasPrefix(got, "placed@hydra (hydra refused: no) placed@io") {
		t.Errorf("got %s", got)
	}
	if kinds := l.ledger.kinds(id); count(kinds, task.KindRefused) != 1 {
		t.Errorf("ledger %q", kinds)
	}
}

// The connection is cut again and again while a run writes and reads.
func TestCutConnections(t *testing.T) {
	l := newLab(t)
	s := l.overHTTP(t, l.hydra)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })

	const lines = 300
	content := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range lines {
			l.hydra.output(id, fmt.Sprintf("%d\n", i))
			if i%60 == 30 {
				s.down()
				time.Sleep(5 * time.Millisecond)
				s.up()
			}
			time.Sleep(time.Millisecond)
		}
	})
	if err := l.d.Stdin(t.Context(), id, bytes.NewReader(content)); err != nil {
		t.Error(err)
	}
	wg.Wait()
	l.hydra.finish(id, task.Finished{State: task.Succeeded})

	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "%d ", i)
	}
	if got := brief(l.end(id)); got != "placed@hydra started@hydra "+want.String()+"succeeded" {
		t.Errorf("got %s", got)
	}
	l.hydra.mu.Lock()
	defer l.hydra.mu.Unlock()
	if r := l.hydra.runs[id]; !bytes.Equal(r.stdin.Bytes(), content) || !r.eof || l.hydra.starts[id] != 1 {
		t.Errorf("%d of %d bytes of input, eof %v, %d starts", r.stdin.Len(), len(content), r.eof, l.hydra.starts[id])
	}
}
