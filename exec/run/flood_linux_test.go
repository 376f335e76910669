package run

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// memory reads amounts out of /proc/PID/status.
func memory(t testing.TB, pid int, names ...string) (out []task.Bytes) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		var kib task.Bytes
		for line := range strings.Lines(string(b)) {
			if text, ok := strings.CutPrefix(line, name+":"); ok {
				if _, err := fmt.Sscan(text, &kib); err != nil {
					t.Fatal(err)
				}
			}
		}
		out = append(out, kib*task.KiB)
	}
	return out
}

// A program that writes as fast as it can takes no memory of the node that follows
// it (TRUST, R15 and T37).
func TestFloodMemory(t *testing.T) {
	s := bad("flood", "512")
	s.Limits.Output = 16 * task.MiB
	o := order(s)
	n := newNode(t, o)
	cmd := exec.Command(os.Args[0], n.lab.cfg.Dir, n.ledger, n.order, t.TempDir())
	cmd.Env = append(os.Environ(), modeVar+"=daemon")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	in := bufio.NewReader(out)
	if line, err := in.ReadString('\n'); err != nil || line != "open\n" {
		t.Fatalf("the node says %q, %v", line, err)
	}
	before := memory(t, cmd.Process.Pid, "VmRSS")[0]
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(line), "done") {
			break
		}
	}
	most := memory(t, cmd.Process.Pid, "VmHWM")[0]
	if most > before+64*task.MiB {
		t.Errorf("the node has grown from %v to %v", before, most)
	}
	t.Logf("from %v to %v", before, most)
}

// BenchmarkFlood measures what a program that writes as fast as it can costs: how
// fast it can, the memory of its supervisor (goal: 6 MB) and the delay of what
// another run writes beside it (goal: 2 s at p99; TRUST, R15).
func BenchmarkFlood(b *testing.B) {
	l := newLab(b)
	const mib = 1024
	s := bad("flood", fmt.Sprint(mib))
	s.Limits.Output = 64 * task.MiB
	beside := order(spec("sh", "-c", "while :; do date +%s%N; sleep 0.02; done"))
	var delays []time.Duration
	ended := make(chan error, 1)
	go func() {
		ended <- l.Start(b.Context(), beside, func(e *task.Event) error {
			var at int64
			if _, err := fmt.Sscan(string(e.Output()), &at); e.Type == task.EventOutput && err == nil {
				delays = append(delays, time.Since(time.Unix(0, at)))
			}
			return nil
		})
	}()
	var most []task.Bytes
	var dropped, written task.Bytes
	for b.Loop() {
		o := order(s)
		done := make(chan error, 1)
		go func() { done <- l.Start(b.Context(), o, func(*task.Event) error { return nil }) }()
		for over := false; !over; {
			select {
			case err := <-done:
				if over = true; err != nil {
					b.Fatal(err)
				}
			case <-time.After(20 * time.Millisecond):
				for _, pid := range worksIn(l.folder(o.Run)) {
					if _, err := os.Stat(filepath.Join("/proc", fmt.Sprint(pid))); err == nil {
						most = maxOf(most, memory(b, pid, "RssAnon", "VmRSS"))
					}
				}
			}
		}
		var r result
		if err := l.Follow(b.Context(), o.Run, 0, func(e *task.Event) error {
			if e.Type == task.EventFinished {
				return r.add(e)
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		dropped, written = dropped+r.account.Usage.Dropped, written+r.account.Usage.Output
	}
	if err := l.Cancel(b.Context(), beside.Run, true); err != nil {
		b.Fatal(err)
	}
	if err := <-ended; err != nil && !errors.Is(err, io.EOF) {
		b.Fatal(err)
	}
	slices.Sort(delays)
	b.SetBytes(mib << 20)
	b.ReportMetric(float64(delays[len(delays)*99/100].Milliseconds()), "ms-delay-p99")
	if len(most) > 0 {
		b.ReportMetric(float64(most[0])/1e6, "MB-own")
		b.ReportMetric(float64(most[1])/1e6, "MB-rss")
	}
	b.ReportMetric(100*float64(dropped)/float64(written), "%-dropped")
}

func maxOf(a, b []task.Bytes) []task.Bytes {
	for i := range min(len(a), len(b)) {
		b[i] = max(a[i], b[i])
	}
	return b
}
