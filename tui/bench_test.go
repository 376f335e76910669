package tui

import (
	"fmt"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
)

// manyNodes is a mesh of n machines that all send samples.
func manyNodes(n int) Mesh {
	m := testMesh()
	base := m.Nodes
	m.Nodes = nil
	for i := range n {
		node := base[i%len(base)]
		node.Name = fmt.Sprintf("%s-%03d", node.Name, i)
		node.ID = testID(node.Name)
		m.Nodes = append(m.Nodes, node)
	}
	return m
}

// BenchmarkFrame draws the fleet at 160×45.
func BenchmarkFrame(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			f := newFakeNode()
			f.mesh = manyNodes(n)
			m := still(f)
			m.Update(tea.WindowSizeMsg{Width: 160, Height: 45})
			b.ReportAllocs()
			for b.Loop() {
				m.dirty = true
				m.View()
			}
		})
	}
}

// BenchmarkPicture takes a new picture of the mesh: readings, filter, order.
func BenchmarkPicture(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			f := newFakeNode()
			f.mesh = manyNodes(n)
			m := still(f)
			b.ReportAllocs()
			for b.Loop() {
				m.Update(picture{1, f.mesh})
			}
		})
	}
}

// BenchmarkRunFrame draws a run with a full log at 160×45.
func BenchmarkRunFrame(b *testing.B) {
	m := runScene()
	for i := range maxLogLines {
		m.run.log.log.write(lineStdout, fmt.Appendf(nil, "line %d of a log that is long enough to be wrapped now and then %0120d\n", i, i%7), time.Time{})
	}
	m.Update(tea.WindowSizeMsg{Width: 160, Height: 45})
	b.ReportAllocs()
	for b.Loop() {
		m.dirty = true
		m.View()
	}
}
