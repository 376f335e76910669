package store

import (
	"fmt"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// body is as long as that of a usual entry.
var body = strings.Repeat("x", 300)

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("%d-per-call", n), func(b *testing.B) {
			s := newStore(b, 1)
			drafts := make([]task.Draft, n)
			for i := range drafts {
				drafts[i] = draft("mesh", body)
			}
			for b.Loop() {
				appendTo(b, s, drafts...)
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// Many callers at once share the wait for the disk.
func BenchmarkAppendConcurrent(b *testing.B) {
	s := newStore(b, 1)
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			appendTo(b, s, draft("mesh", body))
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// One operation is all that the submitter's ledger does for a run that does
// nothing: five transactions, six entries.
func BenchmarkRun(b *testing.B) {
	s, executor := newStore(b, 1), newStore(b, 2)
	runs := make([]testRun, b.N)
	facts := make([][]*wire.Entry, b.N)
	for i := range runs {
		r := newRun(executor.self)
		runs[i], facts[i] = r, appendTo(b, executor, r.accepted(1), r.started(1), r.finished(1, task.Succeeded))
	}
	b.ResetTimer()
	for i, r := range runs {
		appendTo(b, s, r.submit(), r.place(1))
		for _, e := range facts[i] {
			if _, err := s.Accept(b.Context(), e); err != nil {
				b.Fatal(err)
			}
		}
		appendTo(b, s, r.receipt(1, wire.Hash{1}))
	}
}

func BenchmarkAccept100(b *testing.B) {
	s := newStore(b, 1)
	for i := range b.N {
		b.StopTimer()
		list := forge(b, 2, "mesh", uint64(i), slicesRepeat(body, 100)...)
		b.StartTimer()
		if _, err := s.Accept(b.Context(), list...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*100)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkVerify10k(b *testing.B) {
	s := newStore(b, 1)
	for i := range 10 {
		if _, err := s.Accept(b.Context(), forge(b, 2, "mesh", uint64(i), slicesRepeat(body, 1000)...)...); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		mustVerify(b, s, 10_001)
	}
}

func BenchmarkHeads(b *testing.B) {
	s := newStore(b, 1)
	for i := range 100 {
		if _, err := s.Accept(b.Context(), forge(b, byte(2+i%10), "mesh", uint64(i), slicesRepeat(body, 100)...)...); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if heads, err := s.Heads(b.Context(), wire.TopicMesh); err != nil || len(heads) != 101 {
			b.Fatal(len(heads), err)
		}
	}
}

func slicesRepeat(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}
