package main

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/meshtest"
)

// Members meet a node that is still starting. Their calls wait for it.
func TestEarlyCallersWait(t *testing.T) {
	m := meshtest.New(t, 2)
	ports, err := openPorts(m.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	defer ports.close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := m.Nodes[1].Dial(ctx, m.Node(0), apiPort) // nobody accepts yet
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	served := make(chan error, 1)
	go func() {
		s, err := ports.api.Accept()
		if err == nil {
			_, err = s.Write([]byte("up"))
			s.Close()
		}
		served <- err
	}()
	if got, err := io.ReadAll(c); err != nil || string(got) != "up" {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
