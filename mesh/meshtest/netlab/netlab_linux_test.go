package netlab_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/mesh/meshtest/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds the wait for what has to happen.
const patience = 30 * time.Second

// probe is a UDP socket of a host.
type probe struct {
	t testing.TB
	c *net.UDPConn
}

func open(t testing.TB, h *netlab.Host, port uint16) probe {
	t.Helper()
	c, err := h.ListenUDP(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return probe{t, c}
}

func (p probe) send(text string, to netip.AddrPort) {
	_, _ = p.c.WriteToUDPAddrPort([]byte(text), to) // a host that is cut off may not send
}

// next returns what comes in within a time; zero if nothing does.
func (p probe) next(within time.Duration) (text string, from netip.AddrPort) {
	_ = p.c.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, 2048)
	n, from, err := p.c.ReadFromUDPAddrPort(b)
	if err != nil {
		return "", netip.AddrPort{}
	}
	return string(b[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// asks sends a question to an echo until its answer comes, and returns that:
// where the echo saw the question come from. It is zero if there is none within
// the time.
func (p probe) asks(echo netip.AddrPort, within time.Duration) netip.AddrPort {
	question := rand.Text() // answers to older ones may still be on their way
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		p.send(question, echo)
		text, _ := p.next(100 * time.Millisecond)
		if seen, ok := strings.CutPrefix(text, question+" "); ok {
			return netip.MustParseAddrPort(seen)
		}
	}
	return netip.AddrPort{}
}

// reaches reports whether an answer comes within a time that is enough here.
func (p probe) reaches(echo netip.AddrPort) bool {
	return p.asks(echo, 300*time.Millisecond).IsValid()
}

func (p probe) mustReach(echo netip.AddrPort, when string) {
	p.t.Helper()
	if !p.asks(echo, patience).IsValid() {
		p.t.Fatalf("%v is out of reach %s", echo, when)
	}
}

// echo repeats every question on a port of a host, and says where it came from.
func echo(t testing.TB, h *netlab.Host, port uint16) netip.AddrPort {
	t.Helper()
	c, err := h.ListenUDP(port)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				seen := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
				_, _ = c.WriteToUDPAddrPort(fmt.Appendf(b[:n], " %v", seen), from)
			}
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return netip.AddrPortFrom(h.Addr(), port)
}

func TestNAT(t *testing.T) {
	lab := netlab.New(t)
	pub, pub2 := lab.Internet.Host("pub"), lab.Internet.Host("pub2")
	echoes := []netip.AddrPort{echo(t, pub, 7), echo(t, pub, 8), echo(t, pub2, 7)}
	stranger := open(t, pub, 9)
	for _, c := range []struct {
		kind          netlab.NAT
		mapped, stray bool // one mapping for all destinations; strays come in
	}{
		{netlab.Easy, true, false},
		{netlab.EasyRej, true, false},
		{netlab.Cone, true, true},
		{netlab.Hard, false, false},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			home := lab.Router(c.kind, "192.168.1")
			h := home.Host(string(c.kind))
			p := open(t, h, 4000)
			var seen []netip.AddrPort
			for _, e := range echoes {
				at := p.asks(e, patience)
				if at.Addr() != h.Public() {
					t.Fatalf("%v sees %v as %v", e, h, at)
				}
				seen = append(seen, at)
			}
			if same := seen[0] == seen[1] && seen[0] == seen[2]; same != c.mapped {
				t.Errorf("seen as %v", seen)
			}
			// The answer is behind the stray on the same way.
			stranger.send("stray", seen[0])
			p.send("and now?", echoes[0])
			text := ""
			for text != "stray" && !strings.HasPrefix(text, "and now?") {
				if text, _ = p.next(patience); text == "" {
					t.Fatal("no answer")
				}
			}
			if got := text == "stray"; got != c.stray {
				t.Errorf("a stray came in: %v", got)
			}
			// A second socket with the same port behind the router gets another one
			// outside, where the destination is the same.
			if second := open(t, home.Host("second"), 4000).asks(echoes[0], patience); second == seen[0] {
				t.Errorf("two sockets behind one router are seen as %v", second)
			}
		})
	}
}

// punch has two sockets send to where the internet sees the other, and back to
// where something came from. It reports whether both got something.
func punch(a, b probe, seenA, seenB netip.AddrPort) bool {
	type end struct {
		probe
		to  netip.AddrPort
		got bool
	}
	ends := []*end{{a, seenB, false}, {b, seenA, false}}
	for range 10 {
		for _, e := range ends {
			e.send("punch", e.to)
		}
		for _, e := range ends {
			for text, from := e.next(20 * time.Millisecond); text != ""; text, from = e.next(time.Millisecond) {
				if text == "punch" {
					e.to, e.got = from, true
				}
			}
		}
		if ends[0].got && ends[1].got {
			return true
		}
	}
	return false
}

func TestPunching(t *testing.T) {
	const public = netlab.NAT("public")
	lab := netlab.New(t)
	e := echo(t, lab.Internet.Host("pub"), 7)
	kinds := []netlab.NAT{public, netlab.Easy, netlab.Cone, netlab.Hard, netlab.EasyRej}
	hosts := map[netlab.NAT][2]*netlab.Host{}
	for _, k := range kinds {
		var two [2]*netlab.Host
		for i := range two {
			network := lab.Internet
			if k != public {
				network = lab.Router(k, "192.168.1")
			}
			two[i] = network.Host(fmt.Sprintf("%s%d", k, i))
		}
		hosts[k] = two
	}
	port := uint16(5000)
	for i, x := range kinds {
		for _, y := range kinds[i:] {
			closed := x == netlab.Easy && y == netlab.Hard || x == netlab.Hard && (y == netlab.Hard || y == netlab.EasyRej) ||
				x == netlab.EasyRej && y == netlab.EasyRej
			if y == netlab.EasyRej && x == netlab.Easy {
				continue // it depends on who is first
			}
			port++
			a, b := open(t, hosts[x][0], port), open(t, hosts[y][1], port)
			if got := punch(a, b, a.asks(e, patience), b.asks(e, patience)); got == closed {
				t.Errorf("%s–%s: punched through: %v", x, y, got)
			}
		}
	}
}

func TestNoUDP(t *testing.T) {
	lab := netlab.New(t)
	pub := lab.Internet.Host("pub")
	home := lab.Router(netlab.Easy, "192.168.1")
	h := home.Host("h")
	e := echo(t, pub, 7)
	p := open(t, h, 0)
	p.mustReach(e, "through the router")
	home.SetNAT(netlab.NoUDP)
	if p.reaches(e) {
		t.Error("UDP passes where it is blocked")
	}
	var ln net.Listener
	err := pub.Do(func() (err error) { ln, err = net.Listen("tcp", ":80"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = h.Do(func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(pub.Addr(), 80).String(), patience)
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		t.Errorf("TCP does not pass where UDP is blocked: %v", err)
	}
	home.SetNAT(netlab.Cone)
	p.mustReach(e, "after UDP was let through again")
}

func TestRoam(t *testing.T) {
	lab := netlab.New(t)
	e := echo(t, lab.Internet.Host("pub"), 7)
	home, office := lab.Router(netlab.Easy, "192.168.1"), lab.Router(netlab.Hard, "192.168.1")
	office.Host("other")
	h := home.Host("laptop")
	p := open(t, h, 4000)
	for _, to := range []*netlab.Network{home, office, lab.Internet, lab.Internet, home} {
		h.Roam(to)
		if seen := p.asks(e, patience); seen.Addr() != h.Public() {
			t.Errorf("after roaming %v is seen as %v", h, seen)
		}
	}
	h.Shape(0, 0)
	for _, to := range []*netlab.Network{office, lab.Internet} {
		h.Roam(to)
		if seen := p.asks(e, patience); seen.Addr() != h.Public() {
			t.Errorf("after roaming on a long cable %v is seen as %v", h, seen)
		}
	}
}

func TestCut(t *testing.T) {
	lab := netlab.New(t)
	e := echo(t, lab.Internet.Host("pub"), 7)
	home := lab.Router(netlab.Easy, "192.168.1")
	a, b := home.Host("a"), home.Host("b")
	near := echo(t, b, 7)
	p := open(t, a, 0)
	p.mustReach(e, "at first")
	home.Cut()
	if p.reaches(e) {
		t.Error("the internet is in reach with the router's cable pulled")
	}
	p.mustReach(near, "in the LAN without internet")
	home.Mend()
	p.mustReach(e, "after the router's cable was put back")
	a.Cut()
	if p.reaches(e) || p.reaches(near) {
		t.Error("a host with its cable pulled reaches others")
	}
	a.Mend()
	p.mustReach(e, "after the cable was put back")
	home.Forget()
	p.mustReach(e, "after the router was restarted")
}

func TestHole(t *testing.T) {
	lab := netlab.New(t)
	lan := lab.Router(netlab.Cone, "192.168.1")
	for _, c := range []struct {
		name    string
		a, b, c *netlab.Host
	}{
		{"internet", lab.Internet.Host("a"), lab.Internet.Host("b"), lab.Internet.Host("c")},
		{"internet6", lab.Internet6.Host("a6"), lab.Internet6.Host("b6"), lab.Internet6.Host("c6")},
		{"lan", lan.Host("al"), lan.Host("bl"), lan.Host("cl")},
		{"router", lan.Host("ar"), lab.Internet.Host("br"), lab.Internet.Host("cr")},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, b, other := open(t, c.a, 0), echo(t, c.b, 7), echo(t, c.c, 7)
			p.mustReach(b, "at first")
			for _, way := range [][2]*netlab.Host{{c.a, c.b}, {c.b, c.a}} {
				lab.Hole(way[0], way[1])
				if p.reaches(b) {
					t.Errorf("a question and its answer pass a hole from %v to %v", way[0], way[1])
				}
				p.mustReach(other, "beside the hole")
				lab.Fill(way[0], way[1])
				p.mustReach(b, "after the hole was filled")
			}
		})
	}
}

func TestMulticast(t *testing.T) {
	lab := netlab.New(t)
	lan := lab.LAN("10.77.1")
	a, b := lan.Host("a"), lan.Host("b")
	group := netip.MustParseAddrPort("224.0.0.251:5353")
	var heard probe
	err := b.Do(func() error {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err := net.ListenMulticastUDP("udp4", eth, net.UDPAddrFromAddrPort(group))
		heard = probe{t, c}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = heard.c.Close() }()
	if out, err := a.Output(t.Context(), "ip", "route", "add", "224.0.0.0/4", "dev", "eth0"); err != nil {
		t.Fatal(out, err)
	}
	p, e := open(t, a, 0), echo(t, b, 7)
	p.mustReach(e, "in the LAN")
	p.send("hello", group)
	if text, _ := heard.next(patience); text != "hello" {
		t.Fatalf("heard %q", text)
	}
	lan.DropMulticast()
	p.send("hello?", group)
	p.mustReach(e, "where multicast is dropped") // after what was sent to all
	if text, _ := heard.next(10 * time.Millisecond); text != "" {
		t.Errorf("heard %q where multicast is dropped", text)
	}
	lan.PassMulticast()
	p.send("hello again", group)
	if text, _ := heard.next(patience); text != "hello again" {
		t.Errorf("heard %q where multicast is carried again", text)
	}
}

func TestShape(t *testing.T) {
	lab := netlab.New(t)
	lan := lab.LAN("10.77.1")
	a, b := lan.Host("a"), lan.Host("b")
	p, e := open(t, a, 0), echo(t, b, 7)
	const delay = 20 * time.Millisecond
	a.Shape(delay, 0)
	p.mustReach(e, "over a long cable")
	for start := time.Now(); ; start = time.Now() {
		if !p.asks(e, 100*time.Millisecond).IsValid() {
			continue // one question at a time
		}
		if took := time.Since(start); took < 2*delay {
			t.Errorf("an answer over a cable of %v after %v", delay, took)
		}
		break
	}
	a.Shape(0, 0.5)
	const sent = 200
	for range sent {
		p.send("?", e)
	}
	got := 0
	for text, _ := p.next(patience); text != ""; text, _ = p.next(300 * time.Millisecond) {
		got++
	}
	if got == 0 || got >= sent {
		t.Errorf("%d of %d answered with half of the frames lost each way", got, sent)
	}
	a.Shape(0, 0)
	p.mustReach(e, "over a good cable")
}

// A batch of segments (GSO) passes a long cable as well as a short one.
func TestShapeCarriesStreams(t *testing.T) {
	lab := netlab.New(t)
	lan := lab.LAN("10.77.1")
	a, b := lan.Host("a"), lan.Host("b")
	a.Shape(time.Millisecond, 0)
	var ln net.Listener
	if err := b.Do(func() (err error) { ln, err = net.Listen("tcp", ":80"); return err }); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const size = 8 << 20
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		n, err := bufio.NewReaderSize(c, 1<<20).Discard(size)
		if n != size {
			err = fmt.Errorf("%d bytes: %w", n, err)
		}
		done <- err
	}()
	var c net.Conn
	err := a.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(b.Addr(), 80).String(), patience)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDocker(t *testing.T) {
	lab := netlab.New(t)
	for _, name := range []string{"a", "b"} {
		h := lab.Internet.Host(name)
		h.Docker()
		err := h.Do(func() error {
			docker, err := net.InterfaceByName("docker0")
			if err != nil {
				return err
			}
			addrs, err := docker.Addrs()
			if docker.Flags&net.FlagUp == 0 || len(addrs) == 0 || addrs[0].String() != "172.17.0.1/16" {
				t.Errorf("%s: %v %v", name, docker.Flags, addrs)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestProcess(t *testing.T) {
	lab := netlab.New(t)
	h := lab.Internet.Host("h")
	h.Setenv("WHO", "h")
	p, err := h.Start("sh", "-c", "echo I am $WHO; sleep 600 & wait")
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); p.Output() != "I am h\n"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("output %q", p.Output())
		}
	}
	p.Kill()
	if p.Err() == nil {
		t.Error("a killed process ended well")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.Output(ctx, "sleep", "600"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that takes too long: %v", err)
	}
}

// What a test that is killed has started is gone with it.
func TestKilled(t *testing.T) {
	if os.Getenv("NETLAB_KILLED") != "" {
		p, err := netlab.New(t).Internet.Host("h").Start("sh", "-c", "echo $$; exec sleep 600")
		if err != nil {
			t.Fatal(err)
		}
		for p.Output() == "" {
			time.Sleep(time.Millisecond)
		}
		fmt.Print("sleeps: ", p.Output())
		select {}
	}
	netlab.New(t) // or skip
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKilled$")
	cmd.Env = append(os.Environ(), "NETLAB_KILLED=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "sleeps: "); ok {
			pid, _ = strconv.Atoi(text)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if pid == 0 {
		t.Fatal("the test that is to be killed started nothing")
	}
	for end := time.Now().Add(patience); sleeps(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d outlives the test that started it", pid)
		}
	}
}

// sleeps reports whether a process is there, is no zombie, and is the sleep.
func sleeps(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return false
	}
	return strings.Contains(string(stat), "(sleep)") && !strings.Contains(string(stat), ") Z ")
}
