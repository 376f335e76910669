package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// api is the version of the interface that is spoken: podman has it since 4.0,
// docker since 20.10.
const api = "/v1.41"

// maxAnswer bounds an answer of the engine, in bytes.
const maxAnswer = 16 << 20

// client speaks to an engine over its socket.
type client struct {
	socket string
	http   *http.Client
}

func dial(socket string) *client {
	c := &client{socket: socket}
	c.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.connect(ctx) }}}
	return c
}

func (c *client) connect(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
}

func (c *client) close() { c.http.CloseIdleConnections() }

// answerError is what an engine says that does not do what it was asked.
type answerError struct {
	status  int
	message string
}

func (e *answerError) Error() string { return e.message }

// is reports whether an engine has answered with a status.
func is(err error, status int) bool {
	var a *answerError
	return errors.As(err, &a) && a.status == status
}

// ask sends in, if it is not nil, and decodes the answer into out, if that is
// not nil.
func (c *client) ask(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://engine"+api+path+"?"+query.Encode(), body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("the container engine at %s: %w", c.socket, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("the container engine at %s: %w", c.socket, err)
	}
	if res.StatusCode >= http.StatusBadRequest {
		return refusal(res.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the container engine at %s: %w", c.socket, err)
	}
	return nil
}

// longest bounds what is repeated of an engine's words, in bytes.
const longest = 300

func refusal(status int, body []byte) error {
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &said) != nil || said.Message == "" {
		said.Message = strings.TrimSpace(string(body))
	}
	if len(said.Message) > longest {
		said.Message = said.Message[:longest] + "…"
	}
	return &answerError{status, fmt.Sprintf("the container engine says (%d): %s", status, strings.ToValidUTF8(said.Message, ""))}
}

// version is what an engine says of itself.
type version struct {
	Version    string
	Components []struct{ Name string }
}

// info is what an engine says of its machine.
type info struct {
	CgroupVersion          string
	SecurityOptions        []string // in which docker says that it is without rights
	Rootless               bool     // and podman says it so
	MemoryLimit, PidsLimit bool
	CPUCfsQuota            bool `json:"CpuCfsQuota"`
}

// image is one that an engine holds.
type image struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Size         uint64
	OS           string `json:"Os"`
	Architecture string
	Config       struct{ Volumes map[string]struct{} }
}

// ErrNoImage says that an engine does not hold an image.
var ErrNoImage = errors.New("no such image")

func (c *client) image(ctx context.Context, ref string) (*image, error) {
	var out image
	err := c.ask(ctx, http.MethodGet, "/images/"+ref+"/json", nil, nil, &out)
	if is(err, http.StatusNotFound) {
		return nil, ErrNoImage
	}
	return &out, err
}

// state is how a container stands.
type state struct {
	Running, OOMKilled bool
	ExitCode, Pid      int
}

// inspected is a container as its engine tells of it.
type inspected struct {
	ID         string `json:"Id"`
	Image      string
	State      state
	HostConfig hostConfig
	Mounts     []struct{ Type, Source, Destination string }
}

func (c *client) inspect(ctx context.Context, name string) (*inspected, error) {
	var out inspected
	return &out, c.ask(ctx, http.MethodGet, "/containers/"+name+"/json", nil, nil, &out)
}

func (c *client) create(ctx context.Context, name string, config *config) error {
	return c.ask(ctx, http.MethodPost, "/containers/create", url.Values{"name": {name}}, config, nil)
}

// post does something to a container for which nothing needs to be sent.
func (c *client) post(ctx context.Context, name, what string, query url.Values) error {
	return c.ask(ctx, http.MethodPost, "/containers/"+name+"/"+what, query, nil, nil)
}

// remove kills a container, if it runs, and removes it with all that it wrote. One
// that is not there is no error.
func (c *client) remove(ctx context.Context, name string) error {
	_ = c.post(ctx, name, "unpause", nil) // one that stands still might not die
	err := c.ask(ctx, http.MethodDelete, "/containers/"+name, url.Values{"force": {"true"}, "v": {"true"}}, nil, nil)
	if is(err, http.StatusNotFound) {
		return nil
	}
	return err
}

// wait waits until a container has ended.
func (c *client) wait(ctx context.Context, name string) (code int, err error) {
	var out struct{ StatusCode int }
	err = c.ask(ctx, http.MethodPost, "/containers/"+name+"/wait", url.Values{"condition": {"not-running"}, "interval": {"20ms"}}, nil, &out)
	return out.StatusCode, err
}

// list names the containers that have a label.
func (c *client) list(ctx context.Context, label string) ([]labelled, error) {
	filter, err := json.Marshal(map[string][]string{"label": {label}})
	if err != nil {
		return nil, err
	}
	var out []labelled
	return out, c.ask(ctx, http.MethodGet, "/containers/json", url.Values{"all": {"true"}, "filters": {string(filter)}}, nil, &out)
}

type labelled struct {
	ID     string `json:"Id"`
	Labels map[string]string
}

// callTime bounds a question to an engine that it answers at once.
const callTime = 10 * time.Second
