package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tunMesh is two nodes on two hosts of one LAN, whose programs use the mesh: n0
// by its interface, and n1 too if it was started so.
type tunMesh struct {
	*segment
	t     *testing.T
	homes []home
	addrs []string // in the overlay
	nodes []*exec.Cmd
}

// newTUNMesh founds a mesh on the first host and has the second join it.
func newTUNMesh(t *testing.T, flags ...[]string) *tunMesh {
	if os.Getenv("BALANCE_LAB") != "1" {
		t.Skip("networks of namespaces are for make e2e: it sets BALANCE_LAB=1")
	}
	_, err := os.Stat("/dev/net/tun")
	need(t, err == nil, "/dev/net/tun")
	for _, tool := range []string{"ping", "dig", "setpriv"} {
		_, err := exec.LookPath(tool)
		need(t, err == nil, tool)
	}
	m := &tunMesh{segment: newSegment(t, len(flags)), t: t}
	m.address("10.77.3")
	dir := shortDir(t)
	for i := range flags {
		m.homes = append(m.homes, home(filepath.Join(dir, strconv.Itoa(i))))
		name := fmt.Sprintf("n%d", i)
		if i == 0 {
			m.balance(i, "init", "--mesh", "lab", "--name", name, "--owner", "ana")
		} else {
			invite := filepath.Join(dir, "invite")
			if err := os.WriteFile(invite, []byte(m.balance(0, "invite")), 0o600); err != nil {
				t.Fatal(err)
			}
			m.balance(i, "join", "--name", name, invite)
		}
		m.nodes = append(m.nodes, m.up(i, flags[i]...))
		m.addrs = append(m.addrs, m.status(i).Address)
	}
	for _, h := range m.homes {
		awaitAll(t, h, len(flags))
		m.awaitOffers(h)
	}
	return m
}

// awaitOffers waits until a node knows what every machine offers, so that runs
// can go there.
func (m *tunMesh) awaitOffers(h home) {
	m.t.Helper()
	m.await(func() bool {
		var rows []nodeRow
		err := newClient(h).get(context.Background(), "/v1/nodes", &rows)
		return err == nil && !slices.ContainsFunc(rows, func(r nodeRow) bool { return !r.Offers })
	})
}

func (m *tunMesh) up(i int, flags ...string) *exec.Cmd {
	m.t.Helper()
	cmd := m.command(m.hosts[i], append([]string{"balance", "--home", string(m.homes[i]), "up"}, flags...)...)
	startIn(m.t, cmd, m.homes[i])
	return cmd
}

func (m *tunMesh) balance(i int, args ...string) string {
	m.t.Helper()
	return m.must(i, append([]string{"balance", "--home", string(m.homes[i])}, args...)...)
}

func (m *tunMesh) status(i int) statusReply {
	m.t.Helper()
	var s statusReply
	if err := newClient(m.homes[i]).get(context.Background(), "/v1/status", &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// must runs a program of a host and returns what it prints.
func (m *tunMesh) must(i int, args ...string) string {
	m.t.Helper()
	cmd := m.command(m.hosts[i], args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		m.t.Fatalf("%v on host %d: %v\n%s%s", args, i, err, out, &errs)
	}
	return string(out)
}

// web serves a text on a port of all of a host's addresses.
func (m *tunMesh) web(i, port int, text string) {
	m.t.Helper()
	cmd := m.command(m.hosts[i], "page", "serve", fmt.Sprintf("[::]:%d", port), text)
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	m.await(func() bool { got, _ := m.get(i, "::1", port); return got == text })
}

// get asks for a text from a host. No answer within three seconds is an error.
func (m *tunMesh) get(i int, addr string, port int) (string, error) {
	out, err := m.command(m.hosts[i], "timeout", "3", "page", "get", fmt.Sprintf("[%s]:%d", addr, port)).Output()
	return string(out), err
}

func (m *tunMesh) await(ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatal("it has not come about within 30 s")
		}
	}
}

// left says what a host still has of the interface.
func (m *tunMesh) left(i int) string {
	m.t.Helper()
	return m.must(i, "sh", "-c", "ip -o link | grep balance; ip -6 -o addr | grep fd; ip -6 route show table all | grep ' fd\\|^fd'; true")
}

// Programs of two hosts talk over the mesh, and reach nothing that is not meant
// for them.
func TestTUN(t *testing.T) {
	m := newTUNMesh(t, []string{"--tun", "--tun-open", "8080"}, []string{"--tun"})
	for i := range m.homes {
		if s := m.status(i); s.Mode != "tun" || s.Interface != "balance0" || s.DNS == "" {
			t.Errorf("status: %+v", s)
		}
		if out := m.balance(i, "status"); !strings.Contains(out, "  mode     tun balance0\n") {
			t.Errorf("status says nothing of the interface:\n%s", out)
		}
	}
	m.must(0, "ping", "-6", "-c", "3", "-i", "0.2", "-W", "10", m.addrs[1])
	m.must(1, "ping", "-6", "-c", "1", "-s", "1232", "-W", "10", m.addrs[0])

	text := strings.Repeat("0123456789abcdef", 1<<12)
	m.web(0, 8080, text)
	m.web(0, 8081, "secret")
	if got, err := m.get(1, m.addrs[0], 8080); err != nil || got != text {
		t.Errorf("an open port of the other host: %d bytes, want %d (%v)", len(got), len(text), err)
	}
	if got, err := m.get(1, m.addrs[0], 8081); err == nil {
		t.Errorf("a member has read from a port that is not open: %q", got)
	}
	for _, addr := range []string{m.addrs[0], "::1"} {
		if got, err := m.get(0, addr, 8081); err != nil || got != "secret" {
			t.Errorf("a program of the host cannot reach another at %s: %q (%v)", addr, got, err)
		}
	}
	for _, option := range []string{"+notcp", "+tcp"} {
		if out := m.must(1, "dig", option, "+short", "@"+m.addrs[0], "n0.lab.internal", "AAAA"); strings.TrimSpace(out) != m.addrs[0] {
			t.Errorf("names by dig %s at the other node: %q", option, out)
		}
	}
	// Programs of a host are not its node: they cannot speak to other nodes.
	if out, err := m.get(1, m.addrs[0], apiPort); err == nil || out != "" {
		t.Errorf("a program speaks to another node as if it were the node of its host: %q", out)
	}

	for i := range m.homes {
		if out := m.balance(i, "run", "--node", fmt.Sprintf("n%d", 1-i), "--", "echo", "hello"); out != "hello\n" {
			t.Errorf("run from n%d: %q", i, out)
		}
	}
	m.balance(0, "down")
	if left := m.left(0); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// A node without an interface and one with it do not notice the difference. A
// node that is killed leaves nothing, and an interface that somebody takes down
// and up again works.
func TestTUNKilled(t *testing.T) {
	m := newTUNMesh(t, nil, []string{"--tun"})
	for i := range m.homes {
		if out := m.balance(i, "run", "--node", fmt.Sprintf("n%d", 1-i), "--", "echo", "hello"); out != "hello\n" {
			t.Errorf("run from n%d: %q", i, out)
		}
	}
	m.must(1, "ping", "-6", "-c", "1", "-W", "10", m.addrs[0])
	if left := m.left(1); !strings.Contains(left, "balance0") || !strings.Contains(left, "/48") {
		t.Errorf("the interface while the node is up:\n%s", left)
	}

	m.in(m.hosts[1], "ip link set balance0 down")
	m.in(m.hosts[1], "ip link set balance0 up")
	m.await(func() bool {
		return m.command(m.hosts[1], "ping", "-6", "-c", "1", "-W", "1", m.addrs[0]).Run() == nil
	})
	m.in(m.hosts[1], "ip link del balance0")
	if out := m.balance(0, "run", "--node", "n1", "--", "echo", "still"); out != "still\n" {
		t.Errorf("without its interface the node is not what it was: %q", out)
	}
	_ = m.nodes[1].Process.Kill()
	_ = m.nodes[1].Wait()

	node := m.up(1, "--tun")
	awaitAll(t, m.homes[1], 2)
	m.must(1, "ping", "-6", "-c", "1", "-W", "10", m.addrs[0])
	_ = node.Process.Kill()
	_ = node.Wait()
	if left := m.left(1); left != "" {
		t.Errorf("a killed node leaves:\n%s", left)
	}
}

// A host that cannot have the interface says why, and what to do.
func TestTUNRefused(t *testing.T) {
	m := newTUNMesh(t, []string{"--tun"})
	second := home(m.homes[0] + "b")
	invite := filepath.Join(t.TempDir(), "invite")
	if err := os.WriteFile(invite, []byte(m.balance(0, "invite")), 0o600); err != nil {
		t.Fatal(err)
	}
	m.must(0, "balance", "--home", string(second), "join", "--name", "n1", invite)
	refused := func(want string, before ...string) {
		t.Helper()
		out, err := m.command(m.hosts[0], append(before, "timeout", "30", "balance", "--home", string(second), "up", "--tun")...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) || !strings.Contains(string(out), "leave --tun out") {
			t.Errorf("want %q: %v\n%s", want, err, out)
		}
	}
	refused("another interface leads to")
	refused("CAP_NET_ADMIN", "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--")
	m.in(m.hosts[0], "sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
	refused("IPv6 is switched off")
	if left := m.must(0, "ip", "-o", "link"); strings.Contains(left, "balance1") {
		t.Errorf("left behind:\n%s", left)
	}
}

// A service's user who has no right but CAP_NET_ADMIN can have the interface. The
// right does not pass to runs.
func TestTUNWithoutRoot(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	s := newSegment(t, 1)
	for _, tool := range []string{"setpriv", "unshare"} {
		_, err := exec.LookPath(tool)
		need(t, err == nil, tool)
	}
	const nobody = 65534
	dir := shortDir(t)
	self, err := os.Executable()
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	program, owned := filepath.Join(dir, "balance"), filepath.Join(dir, "of")
	if out, err := exec.Command("cp", self, program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := errors.Join(os.Mkdir(owned, 0o700), os.Chown(owned, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	h := home(filepath.Join(owned, "h"))
	balance := func(args ...string) *exec.Cmd {
		// /dev/net/tun is everybody's, as udev makes it.
		const script = `mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 &&
			exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin -- "$@"`
		return s.command(s.hosts[0], append([]string{"unshare", "-m", "sh", "-c", script, "sh", program, "--home", string(h)}, args...)...)
	}
	if out, err := balance("init", "--mesh", "lab", "--name", "n0", "--owner", "ana").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	startIn(t, balance("up", "--tun"), h)
	if out := s.in(s.hosts[0], "ip -o link"); !strings.Contains(out, "balance0") {
		t.Errorf("no interface:\n%s", out)
	}
	out, err := balance("run", "--", "grep", "-E", "CapEff|CapAmb", "/proc/self/status").Output()
	if lines := strings.Fields(string(out)); err != nil || len(lines) != 4 || strings.Trim(lines[1]+lines[3], "0") != "" {
		t.Errorf("a run has rights (%v):\n%s", err, out)
	}
}
