package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// Who cannot be asked about is nobody, least of all root.
func TestPeerUID(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if uid, err := peerUID(c.(*net.UnixConn)); err != nil || uid != os.Getuid() {
		t.Errorf("user %d, %v, want %d", uid, err, os.Getuid())
	}
	c.Close()
	if uid, err := peerUID(c.(*net.UnixConn)); err == nil {
		t.Errorf("user %d at the end of a closed connection", uid)
	}
}
