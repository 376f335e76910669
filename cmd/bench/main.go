// Bench prints figures of the whole program beside those that it is compared
// with: two nodes on this machine, as processes of their own, over WireGuard on
// loopback, with both ledgers durable. It asserts nothing.
//
//	go run ./cmd/bench -balance ./balance
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

func main() {
	program := flag.String("balance", "./balance", "the program to measure")
	runs := flag.Int("n", 200, "runs for each latency")
	load := flag.Duration("load", 5*time.Second, "length of each throughput test")
	idle := flag.Duration("idle", 20*time.Second, "length of the test of an idle node")
	rounds := flag.Int("rounds", 3, "rounds, of which medians are printed")
	flag.Parse()
	if err := bench(*program, *runs, *rounds, *load, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// figure is a line of the table.
type figure struct {
	what    string
	unit    string
	values  []float64 // one a round
	compare string
	goal    string
}

func bench(program string, runs, rounds int, load, idle time.Duration) (err error) {
	program, err = filepath.Abs(program)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bal")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l := &lab{program: program, dir: dir}
	defer func() { err = errors.Join(err, l.stop()) }()
	join, err := l.start(rounds)
	if err != nil {
		return err
	}
	figures := []*figure{
		{what: "fork and exec of echo alone: start to first byte, p50", unit: "ms", compare: "0.84 when the goals were set"},
		{what: "balance version: start of the whole command line, p50", unit: "ms"},
		{what: "balance run over the mesh: start to first byte, p50", unit: "ms", compare: "ssh with ControlMaster 6.2, srun 24, ssh 215, Nomad 549", goal: "≤ 6"},
		{what: "the same, p95", unit: "ms"},
		{what: "of that, after the start of the command line, p50", unit: "ms", goal: "≤ 4"},
		{what: "no-op runs to one machine, 8 at a time", unit: "1/s", compare: "srun 23, Nomad 15", goal: "≥ 300"},
		{what: "the same with the command line, 4 at a time", unit: "1/s", compare: "ssh with ControlMaster 258"},
		{what: "first contact of a join, the whole command", unit: "ms", values: join, goal: "≤ 500"},
		{what: "idle node: memory (RSS)", unit: "MiB", compare: "tailscaled 37–52, Nomad 100, nebula 26", goal: "≤ 45"},
		{what: "idle node: processor", unit: "% of a core", goal: "< 0.5"},
		{what: "size of the program", unit: "MB", compare: "tailscaled and its CLI 53, nebula 18.5"},
	}
	measures := []func() (float64, error){
		func() (float64, error) { return l.latency(runs, 0.5, "/bin/echo", "x") },
		func() (float64, error) { return l.latency(runs, 0.5, program, "version") },
		func() (float64, error) { return l.latency(runs, 0.5, program, l.run("echo", "x")...) },
		func() (float64, error) { return l.latency(runs, 0.95, program, l.run("echo", "x")...) },
		func() (float64, error) { return l.afterStart(runs) },
		func() (float64, error) { return l.throughput(load, 8, l.submit) },
		func() (float64, error) { return l.throughput(load, 4, l.runTrue) },
		nil,
		nil,
		nil,
		func() (float64, error) { info, err := os.Stat(program); return float64(info.Size()) / 1e6, err },
	}
	memory, processor, err := l.idle(idle)
	if err != nil {
		return err
	}
	figures[8].values, figures[9].values = []float64{memory}, []float64{processor}
	for range rounds {
		for i, m := range measures {
			if m == nil {
				continue
			}
			v, err := m()
			if err != nil {
				return fmt.Errorf("%s: %w", figures[i].what, err)
			}
			figures[i].values = append(figures[i].values, v)
		}
	}
	return print(figures, rounds)
}

func print(figures []*figure, rounds int) error {
	load, _ := os.ReadFile("/proc/loadavg") // absent on other systems
	fmt.Printf("Both ends, and what measures, share this machine. Medians of %d rounds [least–most]. Load when it ended: %.4s\n\n", rounds, load)
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tFIGURE\tUNIT\tGOAL\tCOMPARE")
	for _, f := range figures {
		slices.Sort(f.values)
		text := fmt.Sprintf("%.2f", median(f.values))
		if len(f.values) > 1 {
			text += fmt.Sprintf(" [%.2f–%.2f]", f.values[0], f.values[len(f.values)-1])
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", f.what, text, f.unit, f.goal, f.compare)
	}
	return w.Flush()
}

func median(sorted []float64) float64 { return quantile(sorted, 0.5) }

func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// lab is a laptop that offers nothing and a server of the same owner.
type lab struct {
	program, dir string
	daemons      []*exec.Cmd
	api          *http.Client // of the laptop's socket
}

func (l *lab) home(node string) string { return filepath.Join(l.dir, node) }

func (l *lab) balance(node string, in io.Reader, args ...string) ([]byte, error) {
	cmd := exec.Command(l.program, append([]string{"--home", l.home(node)}, args...)...)
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stderr = in, &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("balance %s: %w: %s", strings.Join(args, " "), err, errs.Bytes())
	}
	return out, nil
}

// start makes the mesh, and returns how long joining took, for several nodes.
func (l *lab) start(joins int) (took []float64, err error) {
	if _, err := l.balance("laptop", nil, "init", "--mesh", "bench", "--name", "laptop", "--owner", "ana", "--client"); err != nil {
		return nil, err
	}
	if err := l.up("laptop"); err != nil {
		return nil, err
	}
	for i := range joins {
		node := "server"
		if i > 0 {
			node = fmt.Sprintf("other%d", i) // never goes up
		}
		invite, err := l.balance("laptop", nil, "invite")
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		if _, err := l.balance(node, bytes.NewReader(invite), "join", "--name", node, "-"); err != nil {
			return nil, err
		}
		took = append(took, ms(time.Since(begin)))
	}
	if err := l.up("server"); err != nil {
		return nil, err
	}
	l.api = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(l.home("laptop"), "balance.sock"))
	}}}
	for range 200 {
		if _, err := l.balance("laptop", nil, "run", "-n", "--", "true"); err == nil {
			return took, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, errors.New("the nodes have not found each other")
}

func (l *lab) up(node string) error {
	log, err := os.Create(filepath.Join(l.dir, node+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(l.program, "--home", l.home(node), "up", "--listen", "127.0.0.1:0", "--no-multicast")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return err
	}
	l.daemons = append(l.daemons, cmd)
	for range 100 {
		if _, err = l.balance(node, nil, "status"); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

func (l *lab) stop() error {
	for _, d := range l.daemons {
		_ = d.Process.Signal(os.Interrupt)
	}
	var errs []error
	for _, d := range l.daemons {
		errs = append(errs, d.Wait())
	}
	return errors.Join(errs...)
}

func (l *lab) run(command ...string) []string {
	return append([]string{"--home", l.home("laptop"), "run", "--"}, command...)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// latency is a quantile of the time from the start of a process to its first
// byte of output.
func (l *lab) latency(n int, q float64, name string, args ...string) (float64, error) {
	var all []float64
	for range n {
		cmd := exec.Command(name, args...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		var b [1]byte
		if _, err := io.ReadFull(out, b[:]); err != nil {
			return 0, err
		}
		all = append(all, ms(time.Since(begin)))
		_, _ = io.Copy(io.Discard, out) // the rest is of no interest
		if err := cmd.Wait(); err != nil {
			return 0, err
		}
	}
	slices.Sort(all)
	return quantile(all, q), nil
}

const specTrue = `{"driver":"process","command":["true"],"needs":{},"limits":{}}`

// follow posts a run and gives its events to each, until the last one.
func (l *lab) follow(spec string, each func(kind, state string)) error {
	resp, err := l.api.Post("http://balance/v1/runs?follow=1", "application/json", strings.NewReader(spec))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		var e struct{ Type, State, Message string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return err
		}
		each(e.Type, e.State)
		if e.Type == "finished" {
			if e.State != "succeeded" {
				return fmt.Errorf("run %s: %s", e.State, e.Message)
			}
			return nil
		}
	}
	return errors.New("the stream ended before the run")
}

// afterStart is the median time from the connection to the socket to the first
// byte of output, asked for as the command line does (see package quick).
func (l *lab) afterStart(n int) (float64, error) {
	var all []float64
	for range n {
		first, err := l.quick("echo\x00x")
		if err != nil {
			return 0, err
		}
		all = append(all, ms(first))
	}
	slices.Sort(all)
	return median(all), nil
}

func (l *lab) quick(command string) (first time.Duration, err error) {
	begin := time.Now()
	c, err := net.Dial("unix", filepath.Join(l.home("laptop"), "balance.sock"))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "POST /v1/quick HTTP/1.0\r\nHost: balance\r\nContent-Length: %d\r\n\r\n%s", len(command), command); err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(c); lines.Scan(); {
		switch {
		case strings.HasPrefix(lines.Text(), "o "):
			first = time.Since(begin)
		case strings.HasPrefix(lines.Text(), "x "):
			return first, nil
		}
	}
	return 0, errors.New("the run has not ended as expected")
}

func (l *lab) submit() error { return l.follow(specTrue, func(string, string) {}) }

func (l *lab) runTrue() error {
	return exec.Command(l.program, l.run("true")...).Run()
}

// throughput is how many times a second one can be done, several at a time.
func (l *lab) throughput(d time.Duration, workers int, one func() error) (float64, error) {
	var done atomic.Int64
	var group sync.WaitGroup
	errs := make(chan error, workers)
	begin := time.Now()
	for range workers {
		group.Go(func() {
			for time.Since(begin) < d {
				if err := one(); err != nil {
					errs <- err
					return
				}
				done.Add(1)
			}
		})
	}
	group.Wait()
	took := time.Since(begin)
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(done.Load()) / took.Seconds(), nil
	}
}

// idle measures the server while nothing happens. Only Linux tells.
func (l *lab) idle(d time.Duration) (mib, percent float64, err error) {
	pid := l.daemons[1].Process.Pid
	time.Sleep(10 * time.Second) // what starting has left behind settles
	before, err := cpuTime(pid)
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(d)
	after, err := cpuTime(pid)
	if err != nil {
		return 0, 0, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib / 1024, 100 * (after - before).Seconds() / d.Seconds(), err
		}
	}
	return 0, 0, errors.New("no VmRSS")
}

// cpuTime is the processor time of a process, to the nanosecond where the
// kernel keeps it: /proc/PID/schedstat counts one thread, so threads are added.
func cpuTime(pid int) (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		return 0, fmt.Errorf("processor time of %d cannot be read here: %w", pid, err)
	}
	var total time.Duration
	for _, t := range threads {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // a thread has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
}
