package run

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/egress"
	"github.com/balanceai/balance/exec/task"
)

const canary = "c4n4ry-5ecret"

// holders returns what on this machine has the canary: files below folders, and
// command lines and environments of processes, but those of one run.
func holders(t *testing.T, run string, folders ...string) (out []string) {
	t.Helper()
	own := []byte("BALANCE_RUN=" + run + "\x00")
	look := func(path string) {
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(canary)) && (!strings.HasSuffix(path, "/environ") || !bytes.Contains(b, own)) {
			out = append(out, path)
		}
	}
	for _, dir := range folders {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				look(path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		look(filepath.Join(p, "cmdline"))
		look(filepath.Join(p, "environ"))
	}
	return out
}

// told reports whether the ledger has the canary.
func (l *lab) told() bool {
	l.ledger.mu.Lock()
	defer l.ledger.mu.Unlock()
	for _, list := range l.ledger.topics {
		for _, e := range list {
			if bytes.Contains(e.Encode(), []byte(canary)) {
				return true
			}
		}
	}
	return false
}

// A secret that is exposed is in the environment of the program, and nowhere
// else.
func TestExposedSecret(t *testing.T) {
	for name, open := range map[string]func(testing.TB) *lab{"process": newLab, "sandbox": newSandboxLab} {
		t.Run(name, func(t *testing.T) {
			l := open(t)
			s := spec("sh", "-c", `[ "$KEY" = "$(printf '%s-%s' c4n4ry 5ecret)" ] && echo has; while [ ! -e stop ]; do sleep 0.05; done`)
			s.Secrets = []task.Secret{{Name: "KEY", Expose: true}}
			o := order(s)
			if r := refusal(t, l.Start(t.Context(), o, nothing)); r.Reasons[0].Rule != "secrets" {
				t.Errorf("without the value: %v", r)
			}
			o = order(s)
			o.Secrets = task.Secrets{"KEY": canary}
			w := l.start(o)
			w.untilOutput("has")
			if got := holders(t, o.Run, l.cfg.Dir); len(got) > 0 || l.told() {
				t.Errorf("it is in %v; in the ledger: %v", got, l.told())
			}
			if err := os.WriteFile(filepath.Join(l.folder(o.Run), "work", "stop"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if r := w.end(); r.account.ExitCode != 0 {
				t.Errorf("exit code %d: %s", r.account.ExitCode, r.stderr.String())
			}
			if got := holders(t, "none", l.cfg.Dir); len(got) > 0 || l.told() {
				t.Errorf("afterwards it is in %v", got)
			}
		})
	}
}

// A secret that is not exposed is added on the way to its host, also by the next
// life of the node, and nothing of the run has it.
func TestSecretOnTheWayOut(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		need(t, false, "curl")
	}
	l := newSandboxLab(t)
	got := make(chan string, 16)
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("Authorization")
		fmt.Fprintln(w, "answer", r.URL.Path)
	}))
	defer api.Close()
	at := netip.MustParseAddrPort(api.Listener.Addr().String())
	roots := x509.NewCertPool()
	roots.AddCert(api.Certificate())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.cfg.letOut = func(p *egress.Proxy) {
		p.Roots, p.Inside = roots, func(a netip.AddrPort) bool { return a == at }
		p.Lookup = func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{at.Addr()}, nil }
	}
	l.open()
	host := fmt.Sprintf("example.com:%d", at.Port()) // which the test's certificate is for
	s := spec("sh", "-c", `curl -sS "$KEY_URL/one"; while [ ! -e go ]; do sleep 0.05; done; curl -sS --retry 20 --retry-all-errors --retry-delay 1 "$KEY_URL/two"; env; cat /proc/self/environ | tr '\0' '\n'`)
	s.Secrets = []task.Secret{{Name: "KEY", Host: host, Header: "Authorization", Prefix: "Bearer "}}
	if err := s.LetSecretsOut(); err != nil {
		t.Fatal(err)
	}
	o := order(s)
	o.Secrets = task.Secrets{"KEY": canary}
	w := l.start(o)
	w.untilOutput("answer /one")
	if a := <-got; a != "Bearer "+canary {
		t.Errorf("the host got %q", a)
	}
	if h := holders(t, "none", l.cfg.Dir); len(h) > 0 || l.told() {
		t.Errorf("it is in %v; in the ledger: %v", h, l.told())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.open()
	if err := os.WriteFile(filepath.Join(l.folder(o.Run), "work", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := &result{}
	if err := l.Follow(t.Context(), o.Run, 0, r.add); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.stdout.String(), "answer /two") || r.finished == nil {
		t.Errorf("after a restart: %q %q", r.stdout.String(), r.stderr.String())
	}
	if a := <-got; a != "Bearer "+canary {
		t.Errorf("after a restart the host got %q", a)
	}
	if strings.Contains(r.stdout.String(), canary) {
		t.Errorf("the run has it: %s", r.stdout.String())
	}
	if h := holders(t, "none", l.cfg.Dir); len(h) > 0 || l.told() {
		t.Errorf("afterwards it is in %v", h)
	}
}

// A node that was killed between its promise and the start has lost the secrets,
// so the run is lost with it, and is not started without them.
func TestSecretForgotten(t *testing.T) {
	l := newLab(t)
	x, _ := newLive(l.Runner, task.NewID())
	x.spec = spec("true")
	x.spec.Secrets = []task.Secret{{Name: "KEY", Expose: true}}
	_, err := x.launch(t.Context())
	if why := (*end)(nil); !errors.As(err, &why) || !why.lost {
		t.Errorf("%v", err)
	}
}
