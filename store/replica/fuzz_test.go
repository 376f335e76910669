package replica

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

func FuzzReadLines(f *testing.F) {
	good, _ := appendLines(nil, forge(f, 1, 1, "a", "b"))
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte("{}\n\n{\"entry\":null}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := readLines(bytes.NewReader(data))
		if err != nil {
			return
		}
		page, n := appendLines(nil, list)
		again, err := readLines(bytes.NewReader(page))
		if err != nil || len(again) != n || n != len(list) {
			t.Fatalf("%d entries come back as %d of %d: %v", len(list), len(again), n, err)
		}
	})
}

// nothing is a ledger that holds nothing.
type nothing struct{}

func (nothing) Heads(context.Context, string) ([]wire.Head, error) { return nil, nil }

func (nothing) Since(context.Context, string, []wire.Head, int) ([]*wire.Entry, error) {
	return nil, nil
}

func (nothing) Accept(_ context.Context, list ...*wire.Entry) ([]*wire.Entry, error) {
	return list, nil
}

// deadlines is a recorder that takes them.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetReadDeadline(time.Time) error  { return nil }
func (deadlines) SetWriteDeadline(time.Time) error { return nil }

func FuzzServe(f *testing.F) {
	good, _ := appendLines(nil, forge(f, 1, 1, "a", "b"))
	f.Add("/v1/ledger/mesh", good)
	f.Add("/v1/ledger/mesh/since", []byte(`[{"author":"","segment":1,"seq":2,"hash":"","fork":3}]`))
	r := New(Config{
		Ledger: nothing{}, Log: slog.New(slog.DiscardHandler),
		Caller: func(*http.Request) (identity.ID, bool) { return identity.ID{1}, true },
		Gate:   func(_ identity.ID, topic string) bool { return topic == wire.TopicMesh },
		Admit: func(_ context.Context, _ identity.ID, _ string, list []*wire.Entry) ([]*wire.Entry, error) {
			return list, nil
		},
		Alarm: func(identity.ID, error) {},
	})
	h := r.Handler()
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		req := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		req.URL.Path = path
		w := deadlines{httptest.NewRecorder()}
		h.ServeHTTP(w, req)
		if w.Code >= 500 {
			t.Fatalf("%s: status %d: %s", path, w.Code, w.Body)
		}
	})
}
