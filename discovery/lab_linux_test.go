package discovery

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// actor is a process in a network of its own.
type actor struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

func (a *actor) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.Write(p)
}

func (a *actor) output() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.String()
}

// begin lets the actor do what it is there for.
func (a *actor) begin() { fmt.Fprintln(a.in) }

// end makes the actor end and returns all that it printed.
func (a *actor) end(t *testing.T) string {
	t.Helper()
	a.in.Close()
	if err := a.cmd.Wait(); err != nil {
		t.Errorf("%v: %v\n%s", a.cmd.Args, err, a.output())
	}
	return a.output()
}

// network is a switch to which hosts are plugged, in namespaces that go away
// with the test's processes.
type network struct {
	hub   *actor
	hosts int
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	need(t, os.Getuid() == 0, "root, for network namespaces")
	for _, tool := range []string{"ip", "nsenter"} {
		_, err := exec.LookPath(tool)
		need(t, err == nil, tool)
	}
	n := &network{hub: start(t, "hub", 0, nil)}
	in(t, n.hub, "ip link add lan type bridge mcast_snooping 0")
	in(t, n.hub, "ip addr add 10.9.8.254/24 dev lan")
	in(t, n.hub, "ip link set lan up")
	return n
}

const canaryUser = "canary-of-this-user"

// start starts an actor in its own namespaces, or in those of another one.
func start(t *testing.T, role string, number int, beside *actor) *actor {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := &actor{cmd: exec.Command(self)}
	if beside == nil {
		a.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS}
	} else {
		a.cmd = exec.Command("nsenter", "-t", strconv.Itoa(beside.cmd.Process.Pid), "-n", "--", self)
	}
	a.cmd.Env = append(os.Environ(), roleEnv+"="+role, numberEnv+"="+strconv.Itoa(number), "USER="+canaryUser, "LOGNAME="+canaryUser)
	return launch(t, a)
}

func launch(t *testing.T, a *actor) *actor {
	t.Helper()
	var err error
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	a.cmd.Stdout, a.cmd.Stderr = a, a
	a.cmd.WaitDelay = 10 * time.Second
	if err := a.cmd.Start(); err != nil {
		need(t, false, "network namespaces: "+err.Error())
	}
	t.Cleanup(func() {
		a.in.Close()
		kill := time.AfterFunc(10*time.Second, func() { _ = a.cmd.Process.Kill() })
		defer kill.Stop()
		_ = a.cmd.Wait()
	})
	return a
}

// in runs a command in an actor's namespaces.
func in(t *testing.T, a *actor, command string) string {
	t.Helper()
	args := append([]string{"-t", strconv.Itoa(a.cmd.Process.Pid), "-n", "-u", "--"}, strings.Fields(command)...)
	out, err := exec.Command("nsenter", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// plug adds a host with one address of IPv4 to the network.
func (n *network) plug(t *testing.T, role string, number int) *actor {
	t.Helper()
	a := n.plugWithout(t, role, number)
	in(t, a, fmt.Sprintf("ip addr add 10.9.8.%d/24 dev eth0", n.hosts))
	return a
}

// plugWithout adds a host that has the address of IPv6 that every one has.
func (n *network) plugWithout(t *testing.T, role string, number int) *actor {
	t.Helper()
	n.hosts++
	a := start(t, role, number, nil)
	in(t, n.hub, fmt.Sprintf("ip link add p%d type veth peer name eth0 netns %d", n.hosts, a.cmd.Process.Pid))
	in(t, n.hub, fmt.Sprintf("ip link set p%d master lan up", n.hosts))
	in(t, a, "ip link set lo up")
	in(t, a, "ip link set eth0 up")
	return a
}

// address is the one that the host plugged in as the n-th has.
func address(n int) string { return fmt.Sprintf("10.9.8.%d:%d", n, 41000+n-1) }

func found(a *actor, number int, addr string) func() bool {
	return func() bool { return strings.Contains(a.output(), fmt.Sprintf("found %d %s ", number, addr)) }
}

func TestNodesOnALinkFindEachOther(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	nodes := []*actor{n.plug(t, "member", 0), n.plug(t, "member", 1)}
	for _, a := range nodes {
		a.begin()
	}
	eventually(t, "0 finds 1", found(nodes[0], 1, address(2)))
	eventually(t, "1 finds 0", found(nodes[1], 0, address(1)))

	third := n.plug(t, "member", 2)
	third.begin()
	for i, a := range nodes {
		eventually(t, "an old node finds the new one", found(a, 2, address(3)))
		eventually(t, "the new node finds the old ones", found(third, i, address(i+1)))
	}
	linkLocal := regexp.MustCompile(`found 0 \[fe80:[^%]*%eth0\]:41000`)
	eventually(t, "link-local addresses are found", func() bool { return linkLocal.MatchString(third.output()) })
	for _, a := range append(nodes, third) {
		t.Log(a.end(t))
	}
}

func TestALinkWithIPv6Alone(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	nodes := []*actor{n.plugWithout(t, "member", 0), n.plugWithout(t, "member", 1)}
	for i, a := range nodes {
		a.begin()
		other := regexp.MustCompile(fmt.Sprintf(`found %d \[fe80:[^%%]*%%eth0\]:%d`, 1-i, 41000+1-i))
		defer eventually(t, "found by IPv6", func() bool { return other.MatchString(a.output()) })
	}
}

// A host without an address at first, as when it starts before the network.
func TestAnInterfaceThatComesLaterIsNoticed(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	one := n.plug(t, "member", 0)
	one.begin()
	two := start(t, "member", 1, nil)
	two.begin()
	time.Sleep(time.Second)
	in(t, n.hub, fmt.Sprintf("ip link add late type veth peer name eth0 netns %d", two.cmd.Process.Pid))
	in(t, n.hub, "ip link set late master lan up")
	in(t, two, "ip addr add 10.9.8.2/24 dev eth0")
	in(t, two, "ip link set eth0 up")
	eventually(t, "0 finds 1", found(one, 1, address(2)))
	eventually(t, "1 finds 0", found(two, 0, address(1)))
}

// T8, the part that only the wire can show: nothing that the program sends
// holds a name of the host or of a person, or a key.
func TestTheWireTellsNoNames(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	tap := start(t, "capture", 0, n.hub)
	tap.begin()
	eventually(t, "capturing", func() bool { return strings.Contains(tap.output(), "capturing") })
	nodes := []*actor{n.plug(t, "member", 0), n.plug(t, "member", 1)}
	for _, a := range nodes {
		in(t, a, "hostname canary-of-this-host")
		a.begin()
	}
	eventually(t, "0 finds 1", found(nodes[0], 1, address(2)))
	time.Sleep(4 * time.Second) // three announcements, three queries
	for _, a := range nodes {
		a.end(t)
	}
	var frames [][]byte
	for line := range strings.Lines(tap.end(t)) {
		if b, err := hex.DecodeString(strings.TrimSpace(line)); err == nil {
			frames = append(frames, b)
		}
	}
	if len(frames) < 20 {
		t.Fatalf("captured only %d frames", len(frames))
	}
	checkTellsNothing(t, frames, "canary-of-this-host", canaryUser)
}

// T10.
func TestAPeerIsFoundInAFlood(t *testing.T) {
	n := newNetwork(t)
	nodes := []*actor{n.plug(t, "member", 0), n.plug(t, "member", 1)}
	flood := start(t, "flood", 0, n.hub)
	flood.begin()
	time.Sleep(time.Second)
	for _, a := range nodes {
		a.begin()
	}
	eventually(t, "0 finds 1", found(nodes[0], 1, address(2)))
	eventually(t, "1 finds 0", found(nodes[1], 0, address(1)))
	time.Sleep(5 * time.Second)
	for _, a := range nodes {
		t.Log(a.end(t))
	}
	t.Log(flood.end(t))
}

// avahi runs avahi-daemon with a message bus of its own, and browses for us
// once for each line on its standard input. The folder /run is private, and all
// processes end with the first.
const avahi = `
set -e
mount -t tmpfs tmpfs /run
mkdir /run/dbus
cat >/run/dbus.conf <<END
<busconfig>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
END
printf '[publish]\npublish-workstation=no\n' >/run/avahi.conf
dbus-daemon --config-file=/run/dbus.conf --nofork --nopidfile &
while ! [ -S /run/dbus/system_bus_socket ]; do sleep 0.05; done
avahi-daemon --no-drop-root --no-chroot --no-rlimits --no-proc-title -f /run/avahi.conf &
while read -r line; do
	avahi-browse -r -p -t _balance._udp || true
done
`

func startAvahi(t *testing.T, beside *actor) *actor {
	t.Helper()
	pid := strconv.Itoa(beside.cmd.Process.Pid)
	return launch(t, &actor{cmd: exec.Command("nsenter", "-t", pid, "-n", "--",
		"unshare", "-m", "-p", "-f", "--kill-child", "--", "bash", "-c", avahi)})
}

func TestAvahiResolvesUs(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"avahi-daemon", "avahi-browse", "dbus-daemon", "bash", "unshare"} {
		_, err := exec.LookPath(tool)
		need(t, err == nil, tool)
	}
	n := newNetwork(t)
	nodes := []*actor{n.plug(t, "member", 0), n.plug(t, "member", 1)}
	nodes[0].begin()
	browsers := map[string]*actor{
		"on a host of its own": startAvahi(t, n.hub),
		"beside us":            startAvahi(t, nodes[0]),
	}
	nodes[1].begin()
	for where, b := range browsers {
		defer func() { t.Log(where, b.output()) }()
		for host := 1; host <= 2; host++ {
			line := regexp.MustCompile(fmt.Sprintf(
				`(?m)^=;[a-z0-9]+;IPv4;[a-z2-7]{13};_balance._udp;local;[a-z2-7]{13}\.local;10\.9\.8\.%d;%d;"t=[a-z2-7]{32}" "v=1"$`,
				host, 41000+host-1))
			eventually(t, fmt.Sprintf("avahi %s resolves host %d", where, host), func() bool {
				b.begin()
				time.Sleep(200 * time.Millisecond)
				return line.MatchString(b.output())
			})
		}
	}
	eventually(t, "found with avahi on the same port", found(nodes[1], 0, address(1)))
}

// Unicast to the port is for the system's own responder, even if it was there
// before us.
func TestUnicastIsLeftToOthers(t *testing.T) {
	ifaces := loopback(t)
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	responder, err := lc.ListenPacket(t.Context(), "udp4", "0.0.0.0:5353")
	need(t, err == nil, "port 5353 not taken exclusively")
	defer responder.Close()
	var found [2]finds
	for i := range found {
		cfg := testConfig(i, members(2), &found[i])
		cfg.Interfaces = ifaces
		defer Start(cfg).Close()
	}
	eventually(t, "found", func() bool { return len(found[0].of(member(1))) > 0 })
	client, err := net.Dial("udp4", "127.0.0.1:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const text = "for the responder"
	if _, err := client.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	_ = responder.SetReadDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, maxPacket)
	for n := 0; string(buf[:n]) != text; { // it hears the group as well
		if n, _, err = responder.ReadFrom(buf); err != nil {
			t.Fatal(err)
		}
	}
}
