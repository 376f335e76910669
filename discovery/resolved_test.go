package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// busConfig is that of a bus on which everybody may do everything.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow user="*"/>
<allow send_destination="*" eavesdrop="true"/><allow receive_sender="*" eavesdrop="true"/></policy></busconfig>`

// systemBus makes a D-Bus of the test's own the system's.
func systemBus(t *testing.T) {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if runtime.GOOS != "linux" || err != nil {
		if os.Getenv("BALANCE_REQUIRE") == "1" {
			t.Fatal("this test needs dbus-daemon, on Linux")
		}
		t.Skip("this test needs dbus-daemon, on Linux")
	}
	dir, err := os.MkdirTemp("", "bus") //nolint:usetesting // a socket needs a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, config := filepath.Join(dir, "socket"), filepath.Join(dir, "config")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, socket), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--nofork", "--nopidfile", "--nosyslog", "--config-file="+config)
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("dbus-daemon has not come up within 30 s")
		}
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
}

// fakeResolved notes what it is told. It does not know the interface at first.
type fakeResolved struct {
	mu      sync.Mutex
	unknown int    // how often not
	refuses string // name of the error with which it answers SetLinkDNSEx
	told    []string
}

func (f *fakeResolved) note(method string, ifindex int32, arg any) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unknown > 0 {
		f.unknown--
		return dbus.NewError(noSuchLink, nil)
	}
	if method == "SetLinkDNSEx" && f.refuses != "" {
		return dbus.NewError(f.refuses, []any{"no"})
	}
	f.told = append(f.told, fmt.Sprintf("%s %d %v", method, ifindex, arg))
	return nil
}

// own makes it systemd-resolved until the test ends.
func (f *fakeResolved) own(t *testing.T) {
	t.Helper()
	bus, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bus.Close() })
	methods := map[string]any{
		"SetLinkDefaultRoute": func(i int32, on bool) *dbus.Error { return f.note("SetLinkDefaultRoute", i, on) },
		"SetLinkDomains":      func(i int32, list []linkDomain) *dbus.Error { return f.note("SetLinkDomains", i, list) },
		"SetLinkDNSSEC":       func(i int32, mode string) *dbus.Error { return f.note("SetLinkDNSSEC", i, mode) },
		"SetLinkDNSOverTLS":   func(i int32, mode string) *dbus.Error { return f.note("SetLinkDNSOverTLS", i, mode) },
		"SetLinkDNSEx":        func(i int32, list []linkServer) *dbus.Error { return f.note("SetLinkDNSEx", i, list) },
	}
	if err := bus.ExportMethodTable(methods, resolvedPath, resolvedManager); err != nil {
		t.Fatal(err)
	}
	if r, err := bus.RequestName(resolved, dbus.NameFlagDoNotQueue); err != nil || r != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(r, err)
	}
}

func TestSplitDNS(t *testing.T) {
	systemBus(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	server := netip.MustParseAddrPort("127.0.0.1:5354")
	domains := Domains("lab", netip.MustParsePrefix("fd12:3456:789a::/48"))
	if err := SplitDNS(ctx, 7, server, domains); err == nil || err.Error() != "systemd-resolved does not run" {
		t.Errorf("without systemd-resolved: %v", err)
	}
	f := &fakeResolved{unknown: 2}
	f.own(t)
	if err := SplitDNS(ctx, 7, server, domains); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"SetLinkDefaultRoute 7 false",
		"SetLinkDomains 7 [{lab.internal true} {a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa true}]",
		"SetLinkDNSSEC 7 no",
		"SetLinkDNSOverTLS 7 no",
		"SetLinkDNSEx 7 [{2 [127 0 0 1] 5354 }]",
	}
	f.mu.Lock()
	if !slices.Equal(f.told, want) {
		t.Errorf("systemd-resolved was told\n%s\nwant\n%s", strings.Join(f.told, "\n"), strings.Join(want, "\n"))
	}
	const refusal = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
	f.refuses = refusal
	f.mu.Unlock()
	failure, ok := errors.AsType[dbus.Error](SplitDNS(ctx, 7, server, domains))
	if !ok || failure.Name != refusal {
		t.Errorf("where it is not allowed: %+v", failure)
	}
	f.mu.Lock()
	f.refuses, f.unknown = "", 1<<30
	f.mu.Unlock()
	soon, cancel := context.WithTimeout(ctx, 3*linkPause)
	defer cancel()
	if err := SplitDNS(soon, 7, server, domains); err == nil {
		t.Error("an interface that it never hears of is no error")
	}
}

func TestSplitDNSWithoutBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	if err := SplitDNS(t.Context(), 7, netip.MustParseAddrPort("127.0.0.1:53"), nil); err == nil || !strings.HasPrefix(err.Error(), "no D-Bus: ") {
		t.Errorf("without a bus: %v", err)
	}
}
