package proxy

import (
	"context"
	"io"
	"sync"
	"time"
)

// lastWords is how long one direction may go on after the other has failed:
// what a peer said before it hung up still arrives.
const lastWords = 5 * time.Second

// Carry copies in both directions between two connections until both have
// ended, and closes them. The end of one direction is passed on, and leaves the
// other one open. The end of ctx ends both.
func Carry(ctx context.Context, a, b io.ReadWriteCloser) {
	end := sync.OnceFunc(func() { a.Close(); b.Close() })
	defer end()
	defer context.AfterFunc(ctx, end)()
	var late *time.Timer
	var failed sync.Once
	copyTo := func(dst, src io.ReadWriteCloser) {
		_, err := io.Copy(dst, src)
		if closeWrite(dst) != nil || err != nil {
			failed.Do(func() { late = time.AfterFunc(lastWords, end) })
		}
	}
	var back sync.WaitGroup
	back.Go(func() { copyTo(a, b) })
	copyTo(b, a)
	back.Wait()
	if late != nil {
		late.Stop()
	}
}

// closeWrite ends the direction to c. A connection that cannot end one
// direction ends as a whole.
func closeWrite(c io.Closer) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
