package container

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// attached is a connection to the standard input and output of a container.
type attached struct {
	conn net.Conn
	in   *bufio.Reader
}

// attach connects to a container, before it is started.
func (c *client) attach(ctx context.Context, name string, stdin bool) (*attached, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	path := "/containers/" + name + "/attach?stream=1&stdout=1&stderr=1"
	if stdin {
		path += "&stdin=1"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://engine"+api+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "tcp")
	if err := r.Write(conn); err != nil {
		conn.Close()
		return nil, err
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, r)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols && res.StatusCode != http.StatusOK {
		defer conn.Close()
		defer res.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		return nil, refusal(res.StatusCode, b)
	}
	return &attached{conn, in}, nil
}

// send copies standard input, and ends it.
func (a *attached) send(from io.Reader) {
	_, _ = io.Copy(a.conn, from) // a program that does not read it is no mistake
	if half, ok := a.conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// The streams of a frame.
const (
	streamStdout = 1
	streamStderr = 2
)

// frameHead is the length of what is before each piece of output: the stream,
// three zeros, and the length of the piece.
const frameHead = 8

// split copies output that comes in frames, until it ends.
func split(in io.Reader, stdout, stderr io.Writer) error {
	var head [frameHead]byte
	for {
		if _, err := io.ReadFull(in, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		to := stdout
		switch head[0] {
		case streamStdout:
		case streamStderr:
			to = stderr
		default:
			return fmt.Errorf("the output of the container has a stream %d", head[0])
		}
		if _, err := io.CopyN(to, in, int64(binary.BigEndian.Uint32(head[4:]))); err != nil {
			return err
		}
	}
}
