package mesh_test

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/meshtest"
)

// connect returns a connection from node 0 to a port of node 1, both ends.
func connect(b *testing.B, m *meshtest.Mesh) (client, server net.Conn) {
	b.Helper()
	l, err := m.Nodes[1].Listen(9)
	if err != nil {
		b.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			accepted <- c
		}
	}()
	client, err = m.Nodes[0].Dial(b.Context(), m.Node(1), 9)
	if err != nil {
		b.Fatal(err)
	}
	return client, <-accepted
}

// BenchmarkRTT is one byte to and fro over TCP.
func BenchmarkRTT(b *testing.B) {
	client, server := connect(b, meshtest.New(b, 2))
	go func() { _, _ = io.Copy(server, server) }()
	buf := make([]byte, 1)
	for b.Loop() {
		if _, err := client.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(client, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkThroughput is one TCP stream.
func BenchmarkThroughput(b *testing.B) { stream(b, meshtest.New(b, 2)) }

// BenchmarkDistance is one TCP stream to a place 40 ms away.
func BenchmarkDistance(b *testing.B) {
	m := meshtest.Shaped(b, 2)
	m.Link(0, 1).Shape(20*time.Millisecond, 0)
	stream(b, m)
}

func stream(b *testing.B, m *meshtest.Mesh) {
	b.Helper()
	client, server := connect(b, m)
	go func() { _, _ = io.Copy(io.Discard, server) }()
	buf := make([]byte, 128<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := client.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdleNode is what a node keeps in memory that has a peer and nothing
// to do: heap and stacks.
func BenchmarkIdleNode(b *testing.B) {
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	const nodes = 10
	for b.Loop() {
		before := used()
		m := meshtest.New(b, nodes)
		for i := range nodes {
			m.MustTalk(i, (i+1)%nodes, 10*time.Second)
		}
		b.ReportMetric(float64(used()-before)/nodes/1024, "KiB/node")
	}
}

// BenchmarkFirstContact is from the start of a node that knows a running one
// to the first byte that comes back from it.
func BenchmarkFirstContact(b *testing.B) {
	m := meshtest.New(b, 2)
	for b.Loop() {
		b.StopTimer()
		m.Stop(0)
		b.StartTimer()
		m.Start(0)
		m.MustTalk(0, 1, 10*time.Second)
	}
}
