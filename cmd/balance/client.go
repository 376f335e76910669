package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"

	"github.com/balanceai/balance/cmd/balance/quick"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/proxy"
)

// client speaks to the daemon of one home over its Unix socket.
type client struct {
	home home
	http *http.Client
}

func newClient(h home) *client {
	return &client{h, &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return h.dial() },
	}}}
}

// maxReply bounds an answer that is not a stream.
const maxReply = 64 << 20

// do sends a request and returns the response if the daemon agreed.
func (c *client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://balance"+path, body)
	if err != nil {
		return nil, err
	}
	return c.send(req)
}

func (c *client) send(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.down(err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var reply struct {
		Error *problem `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(&reply); err != nil || reply.Error == nil {
		return nil, fmt.Errorf("the node answered %s", resp.Status)
	}
	return nil, reply.Error
}

// down explains why the daemon could not be reached.
func (c *client) down(err error) error {
	if _, ok := errors.AsType[*net.OpError](err); !ok {
		return err
	}
	if !c.home.joined() {
		return fail("not_joined", "found a mesh with: balance init; or join one with: balance join INVITE", "this node belongs to no mesh (home %s)", c.home)
	}
	if errors.Is(err, os.ErrPermission) {
		return fail("not_running", "run balance as the user who runs the node, or choose another --home", "the node of %s belongs to another user", c.home)
	}
	return fail("not_running", "start it with: balance up", "the node is not running (home %s)", c.home)
}

// call sends in as JSON, where it is not nil, and decodes the answer into out,
// where that is not nil.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(out)
}

func (c *client) get(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodGet, path, nil, out)
}

// errStop ends a stream without an error.
var errStop = errors.New("stop")

// stream decodes one JSON value a line until the daemon ends the response or
// each returns an error.
func stream[T any](resp *http.Response, each func(T) error) error {
	dec := json.NewDecoder(bufio.NewReaderSize(resp.Body, 64<<10))
	for {
		var v T
		if err := dec.Decode(&v); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := each(v); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return err
		}
	}
}

// submit posts a spec, follows the run's events to its end, and returns its id.
func (c *client) submit(ctx context.Context, spec submission, each func(task.Event) error) (run string, err error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	resp, err := c.do(ctx, http.MethodPost, "/v1/runs?follow=1", bytes.NewReader(b))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	return resp.Header.Get(quick.RunHeader), stream(resp, each)
}

// events reads a run's events after a number, and goes on with those to come
// where follow is set.
func (c *client) events(ctx context.Context, run string, after uint64, follow bool, each func(task.Event) error) error {
	q := url.Values{"after": {strconv.FormatUint(after, 10)}}
	if follow {
		q.Set("follow", "1")
	}
	resp, err := c.do(ctx, http.MethodGet, "/v1/runs/"+url.PathEscape(run)+"/events?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return stream(resp, each)
}

// carry joins a connection with the port of a machine that a path is of, until
// both have ended.
func (c *client) carry(ctx context.Context, path string, conn net.Conn) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://balance"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", streamProtocol)
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		resp.Body.Close()
		return fmt.Errorf("the node answered %s", resp.Status)
	}
	proxy.Carry(ctx, conn, stream)
	return nil
}
