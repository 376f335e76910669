package run

import (
	"errors"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// fsync is what a ledger takes to make an entry durable.
const fsync = 200 * time.Microsecond

// BenchmarkFirstByte measures from the order to the program's first output.
func BenchmarkFirstByte(b *testing.B) {
	l := newLab(b)
	l.ledger.pause = fsync
	seen := errors.New("seen")
	var run task.Order
	for b.Loop() {
		b.StopTimer()
		if run.Run != "" {
			_ = l.Follow(b.Context(), run.Run, 0, func(*task.Event) error { return nil })
		}
		run = order(spec("/bin/echo", "hello"))
		l.ledger.entries = nil
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
			l := newLab(b)
			l.ledger.pause = fsync
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
