package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/isolate/launch"
	"github.com/balanceai/balance/exec/task"
)

// Local is what one run asks of its node, such as models: over HTTP, at an
// address of the run's loopback. In a sandbox, which has a loopback of its own,
// that is where its way out is too.
type Local interface {
	http.Handler

	Serve(ln net.Listener)             // until Close
	Key() string                       // that opens it
	Env(base string) map[string]string // tells the program of it
	Close() task.ModelUsage            // returns what was used
}

// localState is what a later life needs to open the same again. It is in the
// run's folder.
type localState struct {
	Base  string          `json:"base"` // URL
	Key   string          `json:"key"`
	Usage task.ModelUsage `json:"usage"` // of earlier lives
}

func (x *live) localPath() string { return filepath.Join(x.dir, "local") }

func (x *live) saveLocal(s *localState) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(x.localPath(), b, 0o600)
}

// open opens what the run asks of its node, if it asks anything. closed ends
// that, and returns what was used.
func (x *live) open() (closed func() task.ModelUsage, err error) {
	return x.openAs(&localState{})
}

// openAgain opens it for a run that an earlier life has started.
func (x *live) openAgain() (closed func() task.ModelUsage) {
	var s localState
	b, err := os.ReadFile(x.localPath())
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil {
		closed, err = x.openAs(&s)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			x.r.cfg.Log.Error("a run has no endpoint for models any more", "run", x.id, "err", err)
		}
		return func() task.ModelUsage { return s.Usage }
	}
	return closed
}

func (x *live) openAs(s *localState) (closed func() task.ModelUsage, err error) {
	if x.r.cfg.Local == nil {
		return func() task.ModelUsage { return task.ModelUsage{} }, nil
	}
	ask := x.ask()
	ask.Used = s.Usage
	l, err := x.r.cfg.Local(ask, s.Key)
	if l == nil || err != nil {
		return func() task.ModelUsage { return task.ModelUsage{} }, err
	}
	if s.Key = l.Key(); x.level == isolate.Process {
		err = s.listen(l)
	} else {
		s.Base = "http://" + launch.ProxyAddr
	}
	if err == nil {
		err = x.saveLocal(s)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("open the endpoint for models: %w", err)
	}
	x.local, x.endpoint = l, l.Env(s.Base)
	return func() task.ModelUsage {
		s.Usage.Add(l.Close())
		if err := x.saveLocal(s); err != nil {
			x.r.cfg.Log.Warn("what a run has asked models is not kept", "run", x.id, "err", err)
		}
		return s.Usage
	}, nil
}

// listen serves on loopback: at any port, or at that of an earlier life.
func (s *localState) listen(l Local) error {
	at := "127.0.0.1:0"
	if s.Base != "" {
		u, err := url.Parse(s.Base)
		if err != nil {
			return err
		}
		at = u.Host
	}
	ln, err := net.Listen("tcp4", at)
	if err != nil {
		return err
	}
	s.Base = "http://" + ln.Addr().String()
	l.Serve(ln)
	return nil
}
