package discovery

import (
	"crypto/sha256"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/mesh/identity"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		play(role)
		return
	}
	goleak.VerifyTestMain(m)
}

// need skips a test that the machine cannot run, unless the machine is one
// that has to.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("BALANCE_REQUIRE") == "1" {
		t.Fatalf("this test needs %s", what)
	}
	t.Skipf("this test needs %s", what)
}

// eventually polls for as long as a loaded machine may take.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within 30 s", what)
}

const labMembers = 5

var testKey = sha256.Sum256([]byte("key"))

func member(n int) identity.ID {
	return identity.KeyFromSeed([32]byte{byte(n), byte(n >> 8), 77}).ID()
}

func members(n int) []identity.ID {
	out := make([]identity.ID, n)
	for i := range out {
		out[i] = member(i)
	}
	return out
}

// finds collects what a Config.Found was told.
type finds struct {
	mu    sync.Mutex
	calls int
	addrs map[identity.ID][]netip.AddrPort
}

func (f *finds) add(id identity.ID, addrs []netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.addrs == nil {
		f.addrs = map[identity.ID][]netip.AddrPort{}
	}
	f.calls++
	f.addrs[id] = append(f.addrs[id], addrs...)
}

func (f *finds) of(id identity.ID) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addrs[id]
}

func testConfig(self int, ids []identity.ID, found *finds) Config {
	if found == nil {
		found = &finds{}
	}
	return Config{
		Key: testKey, Self: member(self), Port: uint16(41000 + self),
		Members: func() []identity.ID { return ids },
		Found:   found.add,
		Log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Now:     time.Now,
	}
}
