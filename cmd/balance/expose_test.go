package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/meshtest"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/store"
)

const servicePort = 8000

// exposing is a machine of ana, beside a second one of hers and one of ben.
type exposing struct {
	*exposer

	mesh    *meshtest.Mesh
	reached chan net.Conn // connections that the service got
	target  string
}

func newExposing(t *testing.T) *exposing {
	t.Helper()
	m := meshtest.New(t, 3)
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), ledgerFile), m.Keys[0].Identity)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &exposing{mesh: m, reached: make(chan net.Conn, 16), target: ln.Addr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			x.reached <- c
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	who := &roster{self: m.Node(0), state: &trust.State{Members: map[identity.ID]trust.Member{
		m.Node(0): {ID: m.Node(0), Name: "one", Owner: "ana"},
		m.Node(1): {ID: m.Node(1), Name: "two", Owner: "ana"},
		m.Node(2): {ID: m.Node(2), Name: "three", Owner: "ben"},
	}}}
	x.exposer, err = openExposer(t.Context(), m.Nodes[0], db, who, &facts{told: make(chan struct{}, 1)}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.close)
	return x
}

func (x *exposing) to(owners ...string) exposure {
	return exposure{Service: fleet.Service{Port: servicePort, To: owners}, Target: x.target}
}

// dial connects a machine with the service.
func (x *exposing) dial(t *testing.T, from int) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := x.mesh.Nodes[from].Dial(ctx, x.mesh.Node(0), servicePort)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

// admitted reports whether the service itself gets a machine's connection.
func (x *exposing) admitted(t *testing.T, from int) bool {
	t.Helper()
	c := x.dial(t, from)
	ended := make(chan struct{})
	go func() { defer close(ended); _, _ = io.Copy(io.Discard, c) }()
	defer func() { c.Close(); <-ended }()
	select {
	case s := <-x.reached:
		s.Close()
		return true
	case <-ended:
		return false
	case <-time.After(30 * time.Second):
		t.Fatal("a connection that was neither carried nor ended")
		return false
	}
}

// The machine itself decides who may connect, whatever the others believe.
func TestExposedTo(t *testing.T) {
	x := newExposing(t)
	for _, test := range []struct {
		to   []string
		want [3]bool
	}{
		{nil, [3]bool{true, true, false}},
		{[]string{"zoe"}, [3]bool{true, true, false}},
		{[]string{"zoe", "ben"}, [3]bool{true, true, true}},
		{nil, [3]bool{true, true, false}},
		{[]string{"*"}, [3]bool{true, true, true}},
	} {
		if err := x.expose(t.Context(), x.to(test.to...)); err != nil {
			t.Fatal(err)
		}
		for from, want := range test.want {
			if got := x.admitted(t, from); got != want {
				t.Errorf("to %q: machine %d is admitted: %v", test.to, from, got)
			}
		}
	}
}

// What is closed, or is not for somebody any more, ends the connections that it
// has.
func TestExposureEnds(t *testing.T) {
	x := newExposing(t)
	for name, end := range map[string]func() error{
		"changed": func() error { return x.expose(t.Context(), x.to()) },
		"hidden":  func() error { return x.hide(t.Context(), servicePort) },
	} {
		if err := x.expose(t.Context(), x.to("ben")); err != nil {
			t.Fatal(err)
		}
		c := x.dial(t, 2)
		inside := <-x.reached
		if err := end(); err != nil {
			t.Fatal(err)
		}
		_ = inside.SetDeadline(time.Now().Add(30 * time.Second))
		for side, c := range map[string]net.Conn{"the machine's": c, "the service's": inside} {
			if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("%s: %s end: %v", name, side, err)
			}
		}
		inside.Close()
	}
	_ = x.hide(t.Context(), servicePort) // where it was changed last
	if kept, err := x.db.Setting(t.Context(), settingExposed); err != nil || kept != "[]" {
		t.Errorf("kept: %s, %v", kept, err)
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// A service that is down leaves the connection to end.
func TestServiceDown(t *testing.T) {
	x := newExposing(t)
	e := x.to()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.Target = ln.Addr().String()
	ln.Close()
	if err := x.expose(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if x.admitted(t, 1) {
		t.Error("a connection to nothing")
	}
}
