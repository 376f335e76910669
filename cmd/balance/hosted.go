package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/gateway"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/run"
	"github.com/balanceai/balance/exec/serve"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// hosted sees to the runs of this machine that serve: what they need, and whether
// they are well.
type hosted struct {
	models  *models
	exposer *exposer
	files   *files
	log     *slog.Logger

	runner atomic.Pointer[run.Runner] // nil while it still goes on with the runs of an earlier life

	mu   sync.Mutex
	runs map[string]*hostedRun // by id
}

// hostedRun is a run that serves.
type hostedRun struct {
	id    string
	spec  *task.Spec
	port  int
	began time.Time

	well time.Time // since when it answers; zero: it does not yet; guarded by hosted.mu
}

// Times of looking whether a run is well.
const (
	wellStep   = 250 * time.Millisecond // until it is for the first time
	wellPeriod = 3 * time.Second
	wellTime   = 10 * time.Second // for an answer
	wellMisses = 3                // before it is ended
	wellStart  = 15 * time.Minute // to load a large model
)

// ready readies a run that serves; see [run.Config.Serve].
func (h *hosted) ready(ctx context.Context, a run.Ask, port int, again bool) (run.Served, error) {
	r := &hostedRun{id: a.Run, spec: a.Spec, port: port, began: time.Now()}
	h.mu.Lock()
	h.runs[r.id] = r
	h.mu.Unlock()
	served := run.Served{Env: engineEnv(a.Spec)}
	if w := a.Spec.Serve.Weights; !w.IsZero() && !again {
		f, err := h.files.get(ctx, getRequest{Hash: w}, func(getProgress) {})
		if err != nil {
			h.forget(r)
			return served, fmt.Errorf("bring the weights: %w", err)
		}
		served.Weights = f.Path
	}
	ctx, stop := context.WithCancel(context.Background()) // as long as the run
	var watching sync.WaitGroup
	watching.Go(func() { h.watch(ctx, r) })
	served.Close = func() {
		stop()
		watching.Wait()
		h.exposer.unhost(r.id)
		h.forget(r)
		h.models.finder.Kick()
	}
	return served, nil
}

func (h *hosted) forget(r *hostedRun) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.runs, r.id)
}

// engineEnv has an engine found where it is installed, and finds for it what its
// user's other models are. A run's HOME is its own folder.
func engineEnv(spec *task.Spec) map[string]string {
	env := map[string]string{}
	home, err := os.UserHomeDir()
	if err != nil {
		return env
	}
	for _, name := range spec.Needs.Engines {
		if path := fleet.EnginePath(name); path != "" {
			env["PATH"] = filepath.Dir(path) + string(os.PathListSeparator) + os.Getenv("PATH")
		}
		switch name {
		case serve.Ollama:
			env["OLLAMA_MODELS"] = cmp.Or(os.Getenv("OLLAMA_MODELS"), filepath.Join(home, ".ollama", "models"))
		case serve.VLLM:
			env["HF_HOME"] = cmp.Or(os.Getenv("HF_HOME"), filepath.Join(home, ".cache", "huggingface"))
		}
	}
	return env
}

// watch looks whether a run is well until ctx ends, and ends it where it is not,
// or where nobody has asked it for as long as it says.
func (h *hosted) watch(ctx context.Context, r *hostedRun) {
	misses := 0
	tick := time.NewTicker(wellStep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := h.ask(ctx, r)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && h.isWell(r):
			misses = 0
			h.letRest(r)
		case err == nil:
			tick.Reset(wellPeriod)
			h.becomes(r)
		case !h.isWell(r) && time.Since(r.began) > wellStart:
			h.end(r, fmt.Sprintf("it was not ready to serve within %v: %v", wellStart, err))
		case h.isWell(r):
			if misses++; misses >= wellMisses {
				h.end(r, fmt.Sprintf("it does not answer any more: %v", err))
			}
		}
	}
}

// ask asks a run whether it is well.
func (h *hosted) ask(ctx context.Context, r *hostedRun) error {
	ctx, cancel := context.WithTimeout(ctx, wellTime)
	defer cancel()
	if r.spec.Serve.Health == "" {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.target())
		if err == nil {
			c.Close()
		}
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.target()+r.spec.Serve.Health, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", r.spec.Serve.Health, resp.Status)
	}
	return nil
}

func (r *hostedRun) target() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

func (h *hosted) isWell(r *hostedRun) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !r.well.IsZero()
}

// becomes lets others ask a run that is ready.
func (h *hosted) becomes(r *hostedRun) {
	h.mu.Lock()
	r.well = time.Now()
	h.mu.Unlock()
	h.log.Info("serves", "run", r.id, "name", r.spec.Serve.Name)
	h.publish(r)
	h.models.finder.Kick()
}

// end ends a run that is not well.
func (h *hosted) end(r *hostedRun, why string) {
	if x := h.runner.Load(); x != nil {
		x.Stop(r.id, why, policy.DefaultGrace)
	}
}

// letRest ends a run that serves a model which nobody has asked for long.
func (h *hosted) letRest(r *hostedRun) {
	s := r.spec.Serve
	if s.Idle == 0 || s.Kind != task.ServeModel {
		return
	}
	since, idle := h.models.Idle(s.Name)
	h.mu.Lock()
	if since.Before(r.well) {
		since = r.well
	}
	h.mu.Unlock()
	if x := h.runner.Load(); x != nil && idle && time.Since(since) >= s.Idle {
		x.Rest(r.id, "nobody has asked it for "+task.FormatDuration(s.Idle))
	}
}

// places are where the engines are that answer.
func (h *hosted) places() (out []gateway.Place) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(h.runs)) {
		if r := h.runs[id]; r.spec.Serve.Kind == task.ServeModel && !r.well.IsZero() {
			out = append(out, gateway.Place{URL: "http://" + r.target()})
		}
	}
	return out
}

// uses reports whether a kept file is in use.
func (h *hosted) uses(f wire.Hash) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.runs {
		if r.spec.Serve.Weights == f {
			return true
		}
	}
	return false
}
