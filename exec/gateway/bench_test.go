package gateway

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"
)

// way is where a model is asked.
type way struct{ url, model string }

// stream begins a stream, and returns what comes.
func (w way) stream(ctx context.Context, b *testing.B) io.ReadCloser {
	return post(b, ctx, w.url+"chat/completions", key, chat(w.model, "one two", streamed)).Body
}

// ways are how a client reaches an engine: directly, by the gateway of its
// machine, and by that and another one. The mesh between the two is left out
// here; see the benchmark in cmd/balance.
func ways(b *testing.B, model string, words int) map[string]way {
	l := newLab(b)
	here := l.add("alpha", "ana", model)
	there := l.add("beta", "ana", model+"-there")
	here.engine.Words, there.engine.Words = words, words
	here.engine.Key, there.engine.Key = "", ""
	_, url := here.endpoint("ana", key)
	return map[string]way{"engine": {here.raw.URL + "/v1/", model}, "gateway": {url, model}, "two-gateways": {url, model + "-there"}}
}

var order = []string{"engine", "gateway", "two-gateways"}

// BenchmarkFirstToken is the time from a request to the first bytes of a stream.
func BenchmarkFirstToken(b *testing.B) {
	all := ways(b, "echo", 0)
	for _, way := range order {
		b.Run(way, func(b *testing.B) {
			var first time.Duration
			for b.Loop() {
				began := time.Now()
				body := all[way].stream(context.Background(), b)
				in := bufio.NewReader(body)
				_, _ = in.ReadString('\n')
				first += time.Since(began)
				_, _ = io.Copy(io.Discard, in)
				body.Close()
			}
			b.ReportMetric(float64(first.Microseconds())/float64(b.N), "µs/first-token")
		})
	}
}

// BenchmarkTokens is how many tokens come in a second, each in an event of its own
// as engines send them: of one stream and of 32, at the pace of a fast engine, and
// of one stream as fast as its events are read.
func BenchmarkTokens(b *testing.B) {
	for _, load := range []struct {
		name    string
		streams int
		pace    time.Duration
	}{{"one", 1, 5 * time.Millisecond}, {"many", 32, 10 * time.Millisecond}, {"unpaced", 1, 0}} {
		const words = 200
		all := paced(b, load.pace, words)
		for _, way := range order {
			b.Run(load.name+"/"+way, func(b *testing.B) {
				for b.Loop() {
					var streams sync.WaitGroup
					for range load.streams {
						streams.Go(func() {
							body := all[way].stream(context.Background(), b)
							defer body.Close()
							if text, err := io.ReadAll(body); err != nil || bytes.Count(text, []byte("word")) != words {
								b.Error(len(text), err)
							}
						})
					}
					streams.Wait()
				}
				b.ReportMetric(float64(load.streams*words*b.N)/b.Elapsed().Seconds(), "tokens/s")
			})
		}
	}
}

// paced are the ways to an engine that says so many words, with a pause after each.
func paced(b *testing.B, pace time.Duration, words int) map[string]way {
	l := newLab(b)
	here, there := l.add("alpha", "ana", "tokens"), l.add("beta", "ana", "tokens-there")
	for _, m := range []*machine{here, there} {
		m.engine.Words, m.engine.Key, m.engine.Pace = words, "", pace
	}
	_, url := here.endpoint("ana", key)
	return map[string]way{"engine": {here.raw.URL + "/v1/", "tokens"}, "gateway": {url, "tokens"}, "two-gateways": {url, "tokens-there"}}
}

// BenchmarkMemory holds 200 streams open. What a gateway adds is the difference
// to the engine asked directly: all ends are in this process.
func BenchmarkMemory(b *testing.B) {
	const streams = 200
	for _, way := range order {
		b.Run(way, func(b *testing.B) {
			all := ways(b, "slow", 0)
			use := func() uint64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc + m.StackInuse
			}
			for b.Loop() {
				before := use()
				ctx, cancel := context.WithCancel(context.Background())
				var open []io.Closer
				for range streams {
					body := all[way].stream(ctx, b)
					_, _ = bufio.NewReaderSize(body, 16).ReadByte()
					open = append(open, body)
				}
				b.ReportMetric(float64(use()-before)/streams/1024, "KiB/stream")
				cancel()
				for _, body := range open {
					body.Close()
				}
			}
		})
	}
}
