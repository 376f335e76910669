package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/balanceai/balance/exec/fleet"
)

// httpEngine gives a machine an engine that is fine, whatever the model's name.
func httpEngine(t *testing.T, m *machine, model string) *atomic.Int64 {
	var n atomic.Int64
	serveEngine(t, m, model, func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		if strings.Contains(r.Header.Get("Accept"), "none") {
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: {\"choices\":[{\"delta\":{\"content\":\"fine\"}}]}\n\ndata: [DONE]\n\n")
	})
	return &n
}

// hung gives a machine an engine that never answers.
func hung(t *testing.T, m *machine, model string) *atomic.Int64 {
	var n atomic.Int64
	serveEngine(t, m, model, func(_ http.ResponseWriter, r *http.Request) {
		n.Add(1)
		<-r.Context().Done()
	})
	return &n
}

func serveEngine(t *testing.T, m *machine, model string, h http.HandlerFunc) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = http.MaxBytesReader(w, r.Body, 1<<20).Read(make([]byte, 1<<20)) // so that the server sees who goes away
		h(w, r)
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	m.lab.mu.Lock()
	defer m.lab.mu.Unlock()
	engines := []Engine{{Kind: "openai", URL: srv.URL + "/v1", Models: []fleet.Model{{Name: model, Engine: "openai"}}, Loaded: []string{model}}}
	m.cfg.Engines = func() []Engine { return engines }
}
