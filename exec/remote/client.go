package remote

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Client is a [Runner] on another machine. Its errors tell how far a request
// got: [task.ErrUnreachable] means that nothing was sent, [task.ErrBroken] that
// the machine may have received it. A *[task.Refusal], a *[task.OffsetError] and
// [task.ErrNoRun] are the machine's own answers.
type Client struct {
	http    *http.Client
	node    identity.ID
	silence time.Duration
}

// NewClient returns a client for one machine. The transport of h dials by node:
// the host of a URL is a node's id. It should keep many idle connections to a
// host, as each run has one.
func NewClient(h *http.Client, node identity.ID) *Client {
	direct := *h
	direct.CheckRedirect = func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a machine must not send this node's requests elsewhere
	}
	return &Client{http: &direct, node: node, silence: silence}
}

// Start implements [Runner].
func (c *Client) Start(ctx context.Context, order task.Order, yield func(*task.Event) error) error {
	body, err := json.Marshal(entriesBody{encodeEntries(order.Entries), order.Secrets})
	if err != nil {
		return fmt.Errorf("order: %w", err)
	}
	path := runPath(order.Run, "") + "?attempt=" + strconv.Itoa(order.Attempt)
	return c.stream(ctx, http.MethodPut, path, bytes.NewReader(body), yield)
}

// Reserve implements [Runner].
func (c *Client) Reserve(ctx context.Context, b task.Bid, yield func(*task.Event) error) error {
	body, err := json.Marshal(bidBody{b.Spec.Outline(), b.Wait, b.Waited.Milliseconds(), b.Claim})
	if err != nil {
		return fmt.Errorf("bid: %w", err)
	}
	return c.stream(ctx, http.MethodPost, runPath(b.Run, "/reserve"), bytes.NewReader(body), yield)
}

// Follow implements [Runner].
func (c *Client) Follow(ctx context.Context, run string, after uint64, yield func(*task.Event) error) error {
	path := runPath(run, "/events") + "?after=" + strconv.FormatUint(after, 10)
	return c.stream(ctx, http.MethodGet, path, nil, yield)
}

// Stdin implements [Runner]. A call that has failed may still be reading from
// in, until that returns.
func (c *Client) Stdin(ctx context.Context, run string, offset int64, in io.Reader) error {
	k := &call{} // no patience to lose: who waits for input is silent
	path := runPath(run, "/stdin") + "?offset=" + strconv.FormatInt(offset, 10)
	return c.simple(ctx, k, http.MethodPost, path, in)
}

// Resize implements [Runner].
func (c *Client) Resize(ctx context.Context, run string, size task.Terminal) error {
	path := fmt.Sprintf("%s?rows=%d&cols=%d", runPath(run, "/size"), size.Rows, size.Cols)
	return c.simple(ctx, &call{patience: c.silence}, http.MethodPost, path, nil)
}

// Files implements [Runner].
func (c *Client) Files(ctx context.Context, run, path string, w io.Writer) error {
	k := &call{patience: c.silence}
	defer k.end()
	resp, err := c.do(ctx, k, http.MethodGet, runPath(run, "/files")+"?path="+url.QueryEscape(path), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, &blobReader{call: k, body: resp.Body, failed: func(err error) error { return k.failed(ctx, err) }})
	return err
}

// Cancel implements [Runner].
func (c *Client) Cancel(ctx context.Context, run string, force bool) error {
	path := runPath(run, "/cancel")
	if force {
		path += "?force=1"
	}
	return c.simple(ctx, &call{patience: c.silence}, http.MethodPost, path, nil)
}

// Keep gives the machine a run into custody, which takes as long as its inputs do.
func (c *Client) Keep(ctx context.Context, h task.Handing) error {
	body, err := json.Marshal(entriesBody{encodeEntries(h.Entries), h.Secrets})
	if err != nil {
		return fmt.Errorf("custody: %w", err)
	}
	return c.stream(ctx, http.MethodPut, CustodyPath+url.PathEscape(h.Run), bytes.NewReader(body), func(*task.Event) error { return nil })
}

// CancelKept asks a run in its custody to end.
func (c *Client) CancelKept(ctx context.Context, run string) error {
	return c.simple(ctx, &call{patience: c.silence}, http.MethodDelete, CustodyPath+url.PathEscape(run), nil)
}

// Go implements [Runner].
func (c *Client) Go(ctx context.Context, run string) error {
	return c.simple(ctx, &call{patience: c.silence}, http.MethodPost, runPath(run, "/go"), nil)
}

// Renew implements [Runner].
func (c *Client) Renew(ctx context.Context, run string, attempt int, seen uint64) (uint64, error) {
	k := &call{patience: c.silence}
	defer k.end()
	path := runPath(run, "/renew") + "?attempt=" + strconv.Itoa(attempt) + "&seen=" + strconv.FormatUint(seen, 10)
	resp, err := c.do(ctx, k, http.MethodPost, path, nil, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var b stampBody
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxLine)).Decode(&b); err != nil {
		return 0, fmt.Errorf("its answer to a renewal: %w", err)
	}
	return b.Stamp, nil
}

// Settle implements [Runner].
func (c *Client) Settle(ctx context.Context, run string, entries []*wire.Entry) error {
	body, err := json.Marshal(entriesBody{Entries: encodeEntries(entries)})
	if err != nil {
		return fmt.Errorf("settlement: %w", err)
	}
	return c.simple(ctx, &call{patience: c.silence}, http.MethodPost, runPath(run, "/settle"), bytes.NewReader(body))
}

// Blob returns the bytes of a blob from an offset on. A machine that has no such
// blob for this node gives [fs.ErrNotExist].
func (c *Client) Blob(ctx context.Context, h wire.Hash, offset int64) (io.ReadCloser, error) {
	span := ""
	if offset > 0 {
		span = fmt.Sprintf("bytes=%d-", offset)
	}
	r, err := c.blob(ctx, h, span)
	if errors.Is(err, statusError(http.StatusRequestedRangeNotSatisfiable)) {
		return http.NoBody, nil // nothing comes after its last byte
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Part returns n bytes of a blob from an offset on.
func (c *Client) Part(ctx context.Context, h wire.Hash, offset, n int64) (io.ReadCloser, error) {
	r, err := c.blob(ctx, h, fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))
	if err != nil {
		return nil, err
	}
	return r, nil
}

// BlobSize returns how long a blob is, as the machine says. It asks for the first
// byte, so an empty one is an error.
func (c *Client) BlobSize(ctx context.Context, h wire.Hash) (int64, error) {
	r, err := c.blob(ctx, h, "bytes=0-0")
	if err != nil {
		return 0, err
	}
	_ = r.Close() // the one byte does not matter
	_, size, _ := strings.Cut(r.span, "/")
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("blob %s: it does not tell its size", h)
	}
	return n, nil
}

// blob asks for bytes of a blob; without a span, for all of them.
func (c *Client) blob(ctx context.Context, h wire.Hash, span string) (*blobReader, error) {
	k := &call{patience: c.silence}
	header := http.Header{}
	if span != "" {
		header.Set("Range", span)
	}
	resp, err := c.do(ctx, k, http.MethodGet, "/v1/blobs/"+h.String(), header, nil)
	if err != nil {
		k.end()
		return nil, err
	}
	if span != "" && resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		k.end()
		return nil, fmt.Errorf("blob %s: it cannot give %s alone", h, span)
	}
	failed := func(err error) error { return k.failed(ctx, err) }
	return &blobReader{k, resp.Body, resp.Header.Get("Content-Range"), failed}, nil
}

type blobReader struct {
	call   *call
	body   io.ReadCloser
	span   string // Content-Range
	failed func(error) error
}

func (b *blobReader) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.call.heard()
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.failed(err)
	}
	return n, err
}

func (b *blobReader) Close() error {
	defer b.call.end()
	return b.body.Close()
}

// simple sends a request whose answer is a status.
func (c *Client) simple(ctx context.Context, k *call, method, path string, body io.Reader) error {
	defer k.end()
	resp, err := c.do(ctx, k, method, path, nil, body)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (c *Client) stream(ctx context.Context, method, path string, body io.Reader, yield func(*task.Event) error) error {
	k := &call{patience: c.silence}
	defer k.end()
	resp, err := c.do(ctx, k, method, path, nil, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	lines.Split(wholeLines)
	finished := false
	for !finished && lines.Scan() {
		k.heard()
		if len(lines.Bytes()) == 0 {
			continue
		}
		e, err := parseLine(lines.Bytes())
		if err != nil {
			return err
		}
		if err := yield(e); err != nil {
			return err
		}
		k.heard() // the time that yield took is not the machine's
		finished = e.Type == task.EventFinished
	}
	if finished {
		k.timer.Reset(lastWords)
		_, _ = io.CopyN(io.Discard, resp.Body, 1) // its end, so that the connection can serve again
		return nil
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("a line of more than %d bytes", maxLine)
	case err != nil:
		return k.failed(ctx, err)
	}
	return nil
}

// wholeLines is a [bufio.SplitFunc] that leaves out what the end of a broken
// stream has cut.
func wholeLines(data []byte, _ bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	return 0, nil, nil
}

// do sends a request and returns a response of success. Any other is an error.
func (c *Client) do(ctx context.Context, k *call, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(k.begin(ctx), method, "http://"+c.node.String()+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	maps.Copy(req.Header, header)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, k.failed(ctx, err)
	}
	k.heard()
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var a answer
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxLine))
	if err == nil && json.Unmarshal(b, &a) == nil && a.Code != "" {
		return nil, a.err()
	}
	if resp.StatusCode == http.StatusNotFound { // it does not talk to this node, so it did not take the request
		return nil, fmt.Errorf("%w: it does not know this node", task.ErrUnreachable)
	}
	return nil, statusError(resp.StatusCode)
}

// statusError is a status that comes without an answer of this protocol.
type statusError int

func (e statusError) Error() string {
	return "it answers " + strconv.Itoa(int(e)) + " " + http.StatusText(int(e))
}

// call is one request, which is given up when the machine is silent for too
// long.
type call struct {
	patience time.Duration // once there is a connection; 0 for ever
	timer    *time.Timer
	cancel   context.CancelFunc
	silent   atomic.Bool // given up
	reached  atomic.Bool // there was a connection: the request may have been sent
}

// begin returns the request's own context.
func (k *call) begin(ctx context.Context) context.Context {
	ctx, k.cancel = context.WithCancel(ctx)
	k.timer = time.AfterFunc(connectTimeout, func() {
		k.silent.Store(true)
		k.cancel()
	})
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
		k.reached.Store(true)
		k.heard()
	}})
}

func (k *call) end() {
	k.timer.Stop()
	k.cancel()
}

// heard gives the machine its time anew.
func (k *call) heard() {
	if k.patience == 0 {
		k.timer.Stop()
	} else {
		k.timer.Reset(k.patience)
	}
}

// failed says what the end of a request by err means to who asked under ctx.
func (k *call) failed(ctx context.Context, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without the URL, which says nothing to a person
	}
	if k.silent.Load() {
		err = errors.New("no sign of life")
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !k.reached.Load():
		return fmt.Errorf("%w: %w", task.ErrUnreachable, err)
	default:
		return fmt.Errorf("%w: %w", task.ErrBroken, err)
	}
}

func runPath(run, what string) string { return "/v1/runs/" + run + what }
