package run

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// newBenchLab returns a machine whose ledger syncs each entry to disk.
func newBenchLab(b *testing.B) *lab {
	b.Helper()
	l := newLab(b)
	f, err := os.Create(filepath.Join(b.TempDir(), "ledger"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	l.ledger.file, l.ledger.sync = f, true
	return l
}

// BenchmarkFirstByte measures from the order to the program's first output.
func BenchmarkFirstByte(b *testing.B) {
	l := newBenchLab(b)
	seen := errors.New("seen")
	var run task.Order
	for b.Loop() {
		b.StopTimer()
		if run.Run != "" {
			_ = l.Follow(b.Context(), run.Run, 0, func(*task.Event) error { return nil })
		}
		time.Sleep(5 * time.Millisecond)
		run = order(spec("/bin/echo", "hello"))
		b.StartTimer()
		err := l.Start(b.Context(), run, func(e *task.Event) error {
			if e.Type == task.EventOutput {
				return seen
			}
			return nil
		})
		if !errors.Is(err, seen) {
			b.Fatal(err)
		}
	}
	_ = l.Follow(b.Context(), run.Run, 0, func(*task.Event) error { return nil })
}

// BenchmarkNoop measures whole runs, one after the other and side by side.
func BenchmarkNoop(b *testing.B) {
	for name, side := range map[string]int{"one": 1, "eight": 8} {
		b.Run(name, func(b *testing.B) {
			l := newBenchLab(b)
			b.SetParallelism(max(1, side/2))
			work := func(next func() bool) {
				for next() {
					if err := l.Start(b.Context(), order(spec("/bin/true")), func(*task.Event) error { return nil }); err != nil {
						b.Error(err)
					}
				}
			}
			if side == 1 {
				work(b.Loop)
			} else {
				b.RunParallel(func(pb *testing.PB) { work(pb.Next) })
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "runs/s")
		})
	}
}
