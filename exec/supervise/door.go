package supervise

import (
	"io"
	"net"
	"os"
	"sync"

	"github.com/balanceai/balance/exec/isolate/launch"
)

// netFile is the socket, in the run's folder, at which the node serves the run's
// way out. The supervisor, which has the listener that came out of the sandbox,
// joins the two, so that the way is there again when the node is.
const netFile = "net"

// letOut passes on what the run says on its way out, until stop is called.
func letOut(door *os.File) (stop func()) {
	if door == nil {
		return func() {}
	}
	var mu sync.Mutex
	open := map[io.Closer]bool{}
	over := false
	keep := func(c io.Closer) {
		mu.Lock()
		defer mu.Unlock()
		if over {
			c.Close()
		}
		open[c] = true
	}
	forget := func(c io.Closer) {
		mu.Lock()
		defer mu.Unlock()
		delete(open, c)
	}
	go func() {
		ln, err := launch.Listener(door)
		if err != nil {
			return // the program has not started, which its report tells
		}
		keep(ln)
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			keep(in)
			go func() {
				join(in)
				forget(in)
			}()
		}
	}()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		for c := range open {
			c.Close()
		}
	}
}

// join is one connection of the run. It is refused while the node is away.
func join(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("unix", netFile) //nolint:noctx // on this machine
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, in) // each end tells the other by closing
		_ = out.(*net.UnixConn).CloseWrite()
	}()
	_, _ = io.Copy(in, out)
	if half, ok := in.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	<-done
}
