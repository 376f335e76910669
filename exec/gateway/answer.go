package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Headers of answers, and between gateways.
const (
	headerNode  = "Balance-Node"  // the machine whose engine answers
	headerWhy   = "Balance-Why"   // why it was chosen
	headerOwner = "Balance-Owner" // for whom a gateway asks
	headerRun   = "Balance-Run"   // likewise
	trailerUsed = "Balance-Tokens"
)

// What of a request's and an answer's headers is passed on. Credentials are not:
// the gateway has its own for an engine that wants some.
var (
	passedOn   = []string{"Accept", "Content-Type", "Openai-Beta"}
	passedBack = []string{"Content-Type", "Retry-After", "Openai-Processing-Ms", "X-Request-Id", headerNode}
)

// attempt is one request to one candidate.
type attempt struct {
	node   identity.ID
	cancel context.CancelCauseFunc
	resp   *http.Response
	strip  bool   // the event that tells the tokens is not for the reader
	end    func() // of what counts it
}

// answer asks one candidate after another until one answers.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, c *Caller, a *ask, here bool) {
	began := time.Now()
	use := task.ModelUsage{Requests: 1}
	defer func() {
		if c.record != nil {
			c.record(use)
		}
	}()
	list, refused := g.candidates(c, a)
	if here {
		list = only(g.cfg.Self, list)
	}
	if len(list) > 0 && list[0].self && g.sleeps(a.model) {
		if f := g.wake(r.Context(), a.model); f != nil {
			f.write(w)
			return
		}
		list, refused = g.candidates(c, a)
	}
	if len(list) == 0 {
		unknownModel(a.model, names(g.models(c, here)), refused).write(w)
		return
	}
	var last *fault
	for _, m := range list {
		f := g.try(w, r, c, a, m, here, began, &use)
		if f == nil || r.Context().Err() != nil {
			return
		}
		last = f
		g.cfg.Log.Debug("a model did not answer, the next one is asked", "model", a.model, "node", m.name, "error", f.Message)
	}
	last.write(w)
}

func only(id identity.ID, list []candidate) []candidate {
	for _, m := range list {
		if m.id == id {
			return []candidate{m}
		}
	}
	return nil
}

// try asks one candidate. Nothing has been written if there is a fault.
func (g *Gateway) try(w http.ResponseWriter, r *http.Request, c *Caller, a *ask, m candidate, here bool, began time.Time, use *task.ModelUsage) *fault {
	at, f := g.ask(r, c, a, m)
	if f != nil {
		if f.Status != http.StatusTooManyRequests && r.Context().Err() == nil {
			g.fail(m.id)
		}
		return f
	}
	defer at.end()
	defer at.resp.Body.Close()
	s := &stream{
		w: w, out: http.NewResponseController(w), from: at.resp, strip: at.strip, began: began, trailer: here,
		event:  strings.HasPrefix(at.resp.Header.Get("Content-Type"), "text/event-stream"),
		silent: func() { at.cancel(errSilent) },
	}
	s.header = func() {
		for _, h := range passedBack {
			if v := at.resp.Header.Values(h); len(v) > 0 {
				w.Header()[h] = v
			}
		}
		w.Header().Set(headerNode, m.name)
		w.Header().Set(headerWhy, m.why)
	}
	err := s.run(r.Context())
	if s.written {
		use.Answered++
		use.FirstTokenMS += uint64(s.first.Milliseconds())
		use.In += s.used.in()
		use.Out += s.used.out()
		if m.self {
			g.spent.add(c.owners(), task.Tokens(s.used.in()+s.used.out()), time.Now())
		}
	}
	if err == nil {
		g.settle(a.conversation, m.id)
		return nil
	}
	if gone := (*readerError)(nil); r.Context().Err() != nil || errors.As(err, &gone) {
		return nil // who asked has gone
	}
	g.fail(m.id)
	f = faultf(http.StatusBadGateway, "server_error", "engine_lost", "%s was lost while it answered: %v.", m.name, err)
	if s.written {
		s.fail(f)
		return nil
	}
	return f
}

// ask sends the request to a candidate and returns its answer, once that has
// begun. What is no answer is a fault: the next candidate may have a better one.
func (g *Gateway) ask(r *http.Request, c *Caller, a *ask, m candidate) (*attempt, *fault) {
	ctx, cancel := context.WithCancelCause(r.Context())
	at := &attempt{node: m.id, cancel: cancel}
	req, client, done, f := g.request(ctx, r, c, a, m, at)
	if f != nil {
		cancel(nil)
		return nil, f
	}
	g.mu.Lock()
	if !m.self {
		g.attempts[at] = true
	}
	g.mu.Unlock()
	atMember := g.begin(m.id)
	at.end = func() {
		cancel(nil)
		g.mu.Lock()
		delete(g.attempts, at)
		g.mu.Unlock()
		atMember()
		done()
	}
	resp, err := client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		at.end()
		return nil, faultf(http.StatusBadGateway, "server_error", "engine_unreachable", "%s does not answer: %v.", m.name, cut(err))
	}
	if f := rejected(resp, m.name); f != nil {
		resp.Body.Close()
		at.end()
		return nil, f
	}
	at.resp = resp
	return at, nil
}

// cut leaves out the address that was asked: it is the owner's matter.
func cut(err error) error {
	if e := (*url.Error)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// maxFault bounds what is read of an answer that is an error.
const maxFault = 64 << 10

// rejected returns an answer that another candidate might better.
func rejected(resp *http.Response, name string) *fault {
	switch s := resp.StatusCode; {
	case s == http.StatusTooManyRequests, s == http.StatusForbidden, s == http.StatusNotFound, s == http.StatusUnauthorized, s >= 500:
	default:
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxFault)) // what there is of it
	f := &fault{Status: resp.StatusCode, Type: "server_error", Code: "engine_error", Message: fmt.Sprintf("%s answers %s: %s", name, resp.Status, bytes.TrimSpace(text))}
	if inner := readFault(text); inner != nil {
		f.Message, f.Type, f.Code, f.Param = inner.Message, inner.Type, inner.Code, inner.Param
	}
	if f.Status == http.StatusUnauthorized { // of the engine, for the gateway: not the caller's key
		f.Status = http.StatusBadGateway
	}
	return f
}

// request makes the request to a candidate, and says which client sends it. done
// is called when it is over.
func (g *Gateway) request(ctx context.Context, r *http.Request, c *Caller, a *ask, m candidate, at *attempt) (req *http.Request, client *http.Client, done func(), f *fault) {
	target, body, done := "", a.body, func() {}
	var key string
	if m.self {
		e, _, ok := g.local(a.model)
		switch {
		case !ok:
			return nil, nil, nil, unknownModel(a.model, nil, "")
		case e.URL == "":
			return nil, nil, nil, notLoaded(a.model, "it is when it is asked for the first time")
		}
		release, reasons := g.admit(c, a.model)
		if len(reasons) > 0 {
			return nil, nil, nil, denied(m.name, reasons[0])
		}
		target, key, done = e.URL+"/"+a.path, e.Key, release
		body, at.strip = a.counted()
		client = &http.Client{Transport: g.direct, CheckRedirect: noRedirect}
	} else {
		target, client = "http://"+m.id.String()+PeerPath+a.path, g.cfg.Peers
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		done()
		return nil, nil, nil, faultf(http.StatusInternalServerError, "server_error", "internal", "%v", err)
	}
	for _, h := range passedOn {
		if v := r.Header.Values(h); len(v) > 0 {
			req.Header[h] = v
		}
	}
	req.Header.Set("Content-Type", "application/json")
	// A connection that was idle may be dead. An empty list says that the
	// request may be sent again, and is not sent itself; see http.Transport.
	req.Header["X-Idempotency-Key"] = []string{}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if !m.self {
		req.Header.Set(headerOwner, c.Owner)
		if c.Run != "" {
			req.Header.Set(headerRun, c.Run)
		}
	}
	return req, client, done, nil
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// denied answers what the owner's terms forbid.
func denied(node string, reason task.Reason) *fault {
	if reason.Rule == policy.RuleTokens {
		return usedUp("%s %s.", node, reason.Text)
	}
	if reason.Ever { // it will be allowed again
		return faultf(http.StatusTooManyRequests, "rate_limit_error", "too_many_requests", "%s %s.", node, reason.Text)
	}
	return faultf(http.StatusForbidden, "invalid_request_error", "model_not_granted", "%s %s.", node, reason.Text)
}

// refuses returns why a member would not answer a caller, as far as its offer
// tells.
func refuses(n *fleet.Node, c *Caller, model string) string {
	for _, owner := range c.owners() {
		if reasons := n.Offer.Terms.AskModel(policy.ModelQuestion{Owner: owner, Machine: n.Owner, Model: model}); len(reasons) > 0 {
			return reasons[0].Text
		}
	}
	return ""
}

// Peer answers another member, whose owner is given, with the engines of this
// machine alone. The path of the request is below [PeerPath].
func (g *Gateway) Peer(owner string, w http.ResponseWriter, r *http.Request) {
	if f := noBrowser(r); f != nil {
		f.write(w)
		return
	}
	if f := noForm(r); f != nil {
		f.write(w)
		return
	}
	c := &Caller{Owner: owner, Run: r.Header.Get(headerRun)}
	if named := r.Header.Get(headerOwner); named != "" {
		c.Owner, c.Via = named, owner
	}
	path, _ := strings.CutPrefix(r.URL.Path, PeerPath)
	g.route(w, r, c, path, true)
}

// Client answers a program of another member, or of one of its guests, that asks
// this machine itself: with its engines, as [Gateway.Peer] does.
func (g *Gateway) Client(owner string, w http.ResponseWriter, r *http.Request) {
	r.Header.Del(headerOwner)
	r.Header.Del(headerRun)
	r.URL.Path = PeerPath + strings.TrimPrefix(r.URL.Path, "/v1/")
	g.Peer(owner, w, r)
}

// tokens are what an engine says that a request took.
type tokens struct {
	Prompt     uint64 `json:"prompt_tokens"`
	Completion uint64 `json:"completion_tokens"`
	Input      uint64 `json:"input_tokens"`
	Output     uint64 `json:"output_tokens"`
}

func (t tokens) in() uint64  { return max(t.Prompt, t.Input) }
func (t tokens) out() uint64 { return max(t.Completion, t.Output) }

func (t tokens) String() string {
	return strconv.FormatUint(t.in(), 10) + " " + strconv.FormatUint(t.out(), 10)
}

func parseTokens(s string) (t tokens) {
	in, out, _ := strings.Cut(s, " ")
	t.Prompt, _ = strconv.ParseUint(in, 10, 40)      // nothing where it is none
	t.Completion, _ = strconv.ParseUint(out, 10, 40) // likewise
	return t
}
