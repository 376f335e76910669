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

// underlay are the addresses of the two namespaces, server first.
var underlay = [2]netip.Addr{netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("10.78.0.2")}

// lab is two network namespaces joined by a cable. Each lives as long as a
// process that waits for the end of its input, which is the end of this program.
type lab struct {
	holders  [2]*held
	profiles string
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

func newLab(profiles string) (*lab, error) {
	l := &lab{profiles: profiles}
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
	if err := l.in(0, "ip link add veth0 type veth peer name veth0 netns %d", l.holders[1].pid()); err != nil {
		return nil, err
	}
	for i := range l.holders {
		for _, command := range []string{"ip link set lo up", "ip link set veth0 up", fmt.Sprintf("ip addr add %s/24 dev veth0", underlay[i])} {
			if err := l.in(i, "%s", command); err != nil {
				return nil, err
			}
		}
	}
	return l, nil
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
}

// pair is both ends of one network.
type pair struct {
	system         system
	server, client *end
}

// end is a process at one end. It is told what to do by a line on its input,
// and answers with a line.
type end struct {
	*held
	out *bufio.Scanner
}

// start starts a network and connects its ends: each says who it is, and is
// told who the other one is.
func (l *lab) start(s system) (*pair, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var ends [2]*end
	var names [2]string
	for i, role := range []string{"server", "client"} {
		h, err := hold("nsenter", append(l.inside(i), self, "-end", s.name, "-profiles", l.profiles, role)...)
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
		ends[i] = &end{held: h, out: bufio.NewScanner(out)}
		l.ends = append(l.ends, ends[i])
		if names[i], err = ends[i].line(); err != nil {
			return nil, err
		}
	}
	for i, e := range ends {
		if _, err := fmt.Fprintln(e.in, names[1-i]); err != nil {
			return nil, err
		}
		if _, err := e.line(); err != nil { // it is up
			return nil, err
		}
	}
	return &pair{system: s, server: ends[0], client: ends[1]}, nil
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
