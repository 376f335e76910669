package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// The places of a lab, each a network namespace.
const (
	server = iota
	client
	relay
	places
)

var placeNames = [places]string{"server", "client", "relay"}

// Addresses of server and client: on the cable that joins them, and on those to
// the relay.
var (
	underlay = [2]netip.Addr{netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("10.78.0.2")}
	toRelay  = [2]netip.Addr{netip.MustParseAddr("10.78.1.1"), netip.MustParseAddr("10.78.2.2")}
	// relayAddr are the relay's: to the server, to the client.
	relayAddr = [2]netip.Addr{netip.MustParseAddr("10.78.1.3"), netip.MustParseAddr("10.78.2.3")}
)

// lab is three network namespaces: server and client, which a cable joins, and a
// relay, to which each has a cable too. The relay's host forwards nothing. A
// namespace lives as long as a process that waits for the end of its input,
// which is the end of this program.
type lab struct {
	holders  [places]*held
	profiles string
	tools    tools
	ends     []*end
}

// held is a process that ends with its input.
type held struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func hold(name string, args ...string) (*held, error) {
	h := &held{cmd: exec.Command(name, args...)}
	h.cmd.Stderr = os.Stderr
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *held) pid() int { return h.cmd.Process.Pid }

func (h *held) close() {
	_ = h.in.Close()
	_ = h.cmd.Wait() // how it ends is of no interest
}

func newLab(profiles string, t tools) (l *lab, err error) {
	l = &lab{profiles: profiles, tools: t}
	if l.tools.folder, err = os.MkdirTemp("", "bench"); err != nil {
		return nil, err
	}
	for i := range l.holders {
		// It says so when it is in its namespace.
		h, err := hold("unshare", "--net", "sh", "-c", "echo; exec cat")
		if err != nil {
			return nil, err
		}
		out, err := h.cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := h.cmd.Start(); err != nil {
			return nil, fmt.Errorf("make a network namespace: %w", err)
		}
		l.holders[i] = h
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			return nil, fmt.Errorf("make a network namespace: %w", err)
		}
	}
	for i := range l.holders {
		if err := l.in(i, "ip link set lo up"); err != nil {
			return nil, err
		}
	}
	if err := l.cable("veth0", server, underlay[server], client, underlay[client]); err != nil {
		return nil, err
	}
	for i, addr := range toRelay {
		if err := l.cable(fmt.Sprintf("veth%d", i+1), i, addr, relay, relayAddr[i]); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// cable joins two places by interfaces with a name.
func (l *lab) cable(name string, a int, addrA netip.Addr, b int, addrB netip.Addr) error {
	if err := l.in(a, "ip link add %s type veth peer name %s netns %d", name, name, l.holders[b].pid()); err != nil {
		return err
	}
	for _, e := range []struct {
		place int
		addr  netip.Addr
	}{{a, addrA}, {b, addrB}} {
		if err := l.in(e.place, "ip addr add %s/24 dev %s", e.addr, name); err != nil {
			return err
		}
		if err := l.in(e.place, "ip link set %s up", name); err != nil {
			return err
		}
	}
	return nil
}

// inside returns the words by which a program runs in a namespace.
func (l *lab) inside(i int) []string {
	return []string{"-t", strconv.Itoa(l.holders[i].pid()), "-n", "--"}
}

func (l *lab) in(i int, format string, args ...any) error {
	command := fmt.Sprintf(format, args...)
	out, err := exec.Command("nsenter", append(l.inside(i), strings.Fields(command)...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}

func (l *lab) close() {
	for _, e := range l.ends {
		e.close()
	}
	for _, h := range l.holders {
		h.close()
	}
	_ = os.RemoveAll(l.tools.folder) // in the folder for what is temporary
}

// group is all ends of one network, by place.
type group struct {
	system system
	ends   []*end
}

// end is a process at one end. It is told what to do by a line on its input,
// and answers with a line.
type end struct {
	*held
	out    *bufio.Scanner
	daemon int // process that carries the network; 0: it is the end itself
}

// start starts a network and connects its ends: each says who it is, and is
// told who all are.
func (l *lab) start(s system) (*group, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	n := relay
	if s.relayed {
		n = places
	}
	g := &group{system: s, ends: make([]*end, n)}
	names := make([]string, n)
	for i := range g.ends {
		h, err := hold("nsenter", append(l.inside(i), self, "-end", s.name, "-profiles", l.profiles, "-nebula", l.tools.nebula, "-folder", l.tools.folder, strconv.Itoa(i))...)
		if err != nil {
			return nil, err
		}
		out, err := h.cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := h.cmd.Start(); err != nil {
			return nil, err
		}
		g.ends[i] = &end{held: h, out: bufio.NewScanner(out)}
		l.ends = append(l.ends, g.ends[i])
		if names[i], err = g.ends[i].line(); err != nil {
			return nil, err
		}
	}
	for _, e := range g.ends {
		if _, err := fmt.Fprintln(e.in, strings.Join(names, " ")); err != nil {
			return nil, err
		}
		up, err := e.line()
		if err != nil {
			return nil, err
		}
		if e.daemon, err = strconv.Atoi(up); err != nil {
			return nil, fmt.Errorf("an end says %q", up)
		}
	}
	return g, nil
}

func (e *end) line() (string, error) {
	if !e.out.Scan() {
		return "", fmt.Errorf("an end has failed: %w", io.ErrUnexpectedEOF)
	}
	return e.out.Text(), nil
}

// ask has the end do something, and returns the numbers that it answers.
func (e *end) ask(format string, args ...any) ([]float64, error) {
	if _, err := fmt.Fprintf(e.in, format+"\n", args...); err != nil {
		return nil, err
	}
	line, err := e.line()
	if err != nil {
		return nil, err
	}
	var numbers []float64
	for f := range strings.FieldsSeq(line) {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return nil, fmt.Errorf("an end says %q", line)
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}
