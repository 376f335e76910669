package run

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
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

// BenchmarkFirstByte measures from the order to the program's first output, on
// a machine that has nothing else to do.
func BenchmarkFirstByte(b *testing.B) {
	l := newBenchLab(b)
	seen := errors.New("seen")
	var took []time.Duration
	for b.Loop() {
		o := order(spec("/bin/echo", "hello"))
		begin := time.Now()
		err := l.Start(b.Context(), o, func(e *task.Event) error {
			if e.Type == task.EventOutput {
				return seen
			}
			return nil
		})
		took = append(took, time.Since(begin))
		if !errors.Is(err, seen) {
			b.Fatal(err)
		}
		if err := l.Follow(b.Context(), o.Run, 0, func(*task.Event) error { return nil }); err != nil {
			b.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
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
