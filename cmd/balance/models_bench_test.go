package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/gateway/enginetest"
)

// BenchmarkModels asks an engine itself, through the gateway of its machine, and
// through that of another one over the mesh, on loopback: the time to the first
// bytes of a stream.
func BenchmarkModels(b *testing.B) {
	raw := httptest.NewServer(&enginetest.Engine{Models: []string{"echo"}})
	defer raw.Close()
	dir := shortDir(b)
	alpha, beta := home(filepath.Join(dir, "a")), home(filepath.Join(dir, "b"))
	balance := func(h home, args ...string) []byte {
		b.Helper()
		out, err := exec.Command("balance", append([]string{"--home", string(h)}, args...)...).Output()
		if err != nil {
			b.Fatalf("balance %v: %v\n%s", args, err, out)
		}
		return out
	}
	balance(alpha, "init", "--mesh", "lab", "--name", "alpha", "--owner", "ana")
	startIn(b, exec.Command("balance", "--home", string(alpha), "up", "--listen", "127.0.0.1:0", "--no-multicast"), alpha)
	invite := filepath.Join(dir, "invite")
	if err := os.WriteFile(invite, balance(alpha, "invite"), 0o600); err != nil {
		b.Fatal(err)
	}
	balance(beta, "join", "--name", "beta", invite)
	rules := fmt.Sprintf("models: {find: false, engines: [%q]}\n", raw.URL)
	if err := os.WriteFile(beta.path(rulesFile), []byte(rules), 0o600); err != nil {
		b.Fatal(err)
	}
	startIn(b, exec.Command("balance", "--home", string(beta), "up", "--listen", "127.0.0.1:0", "--no-multicast"), beta)
	for range 600 {
		if bytes.Contains(balance(alpha, "models", "--json"), []byte(`"node":"beta"`)) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, way := range []struct {
		name string
		home home
	}{{"engine", ""}, {"same-machine", beta}, {"over-the-mesh", alpha}} {
		b.Run(way.name, func(b *testing.B) {
			at := ownGateway{URL: raw.URL + "/v1"}
			if way.home != "" {
				if err := newClient(way.home).call(b.Context(), http.MethodPost, "/v1/gateway", map[string]string{}, &at); err != nil {
					b.Fatal(err)
				}
			}
			var first time.Duration
			for b.Loop() {
				first += firstToken(b, at)
			}
			b.ReportMetric(float64(first.Microseconds())/float64(b.N), "µs/first-token")
		})
	}
}

func firstToken(b *testing.B, at ownGateway) time.Duration {
	req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, at.URL+"/chat/completions", bytes.NewReader([]byte(`{"model":"echo","stream":true,"messages":[{"role":"user","content":"one two"}]}`)))
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+at.Key)
	began := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	if line, err := in.ReadString('\n'); err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("%s: %q, %v", resp.Status, line, err)
	}
	first := time.Since(began)
	if _, err := io.Copy(io.Discard, in); err != nil {
		b.Fatal(err)
	}
	return first
}
