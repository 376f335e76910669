package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/policy"
)

const key = "sk-test"

func chat(model, said string, more ...string) string {
	return fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}]%s}`, model, said, strings.Join(more, ""))
}

const streamed = `,"stream":true`

// What comes from an engine comes through, whatever the path of the API, here
// and over the mesh; what the gateway does not know goes through untouched.
func TestAnswers(t *testing.T) {
	for _, where := range []string{"here", "there"} {
		t.Run(where, func(t *testing.T) {
			l := newLab(t)
			a := l.add("alpha", "ana")
			b := a
			if where == "there" {
				b = l.add("beta", "ana", "echo", "tools")
			} else {
				a = l.add("gamma", "ana", "echo", "tools")
				b = a
			}
			e, url := a.endpoint("ana", key)
			for path, want := range map[string]string{
				"chat/completions": `"content":"one two"`, "completions": `"text":"one two"`, "embeddings": `"embedding":[0.5,-0.25]`, "responses": `"type":"output_text"`,
			} {
				body := `{"x_new": {"deep":[1,2]},  "model":"echo","prompt":"one two","input":"one two","messages":[{"role":"user","content":"one two"}]}`
				resp := post(t, t.Context(), url+path, key, body)
				if got := read(t, resp); resp.StatusCode != 200 || !strings.Contains(got, want) {
					t.Errorf("%s: %s %s", path, resp.Status, got)
				}
				if resp.Header.Get(headerNode) != b.name || resp.Header.Get(headerWhy) == "" {
					t.Errorf("%s: headers %v", path, resp.Header)
				}
				if _, got := b.engine.Last(); string(got) != body {
					t.Errorf("%s: the engine got %s", path, got)
				}
			}
			if u := e.Usage(); u.Requests != 4 || u.In != 4+4+3+2 || u.Out != 2+2+4 || u.Answered != 4 {
				t.Errorf("usage %+v", u)
			}
			got := read(t, post(t, t.Context(), url+"chat/completions", key, chat("tools", "weather", `,"tools":[{"type":"function","function":{"name":"weather"}}]`)))
			if !strings.Contains(got, `"tool_calls":[{"function":{"arguments":"{\"city\":\"Oslo\"}","name":"weather"}`) {
				t.Errorf("tools: %s", got)
			}
		})
	}
}

// A stream has the same events as the engine's, and its tokens are counted
// though the client has not asked for them.
func TestStream(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana", "local")
	l.add("beta", "ana", "echo")
	e, url := a.endpoint("ana", key)
	for _, model := range []string{"local", "echo"} {
		before := e.Usage()
		resp := post(t, t.Context(), url+"chat/completions", key, chat(model, "one two three", streamed))
		got := read(t, resp)
		if n := strings.Count(got, "data: "); n != 5 || !strings.HasSuffix(got, "data: [DONE]\n\n") || strings.Contains(got, "usage") {
			t.Errorf("%s: %d events: %s", model, n, got)
		}
		u := e.Usage()
		if u.In-before.In != 6 || u.Out-before.Out != 3 || u.Answered-before.Answered != 1 {
			t.Errorf("%s: usage %+v", model, u)
		}
		got = read(t, post(t, t.Context(), url+"chat/completions", key, chat(model, "one two three", streamed, `,"stream_options":{"include_usage":true}`)))
		if strings.Count(got, `"usage"`) != 1 {
			t.Errorf("%s: who asks for the tokens gets them: %s", model, got)
		}
	}
}

// Credentials of a client stay at the gateway, which has its own for an engine
// (T50); what an engine sets in a client stays there too.
func TestCredentials(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana", "echo")
	_, url := a.endpoint("ana", key)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"chat/completions", strings.NewReader(chat("echo", "hi")))
	for _, h := range []string{"Cookie", "X-Api-Key", "Api-Key", "Openai-Organization", "Proxy-Authorization", "X-Forwarded-For"} {
		req.Header.Set(h, "secret")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, _ := a.engine.Last()
	if resp.StatusCode != 200 || got.Get("Authorization") != "Bearer of the engine" || strings.Contains(fmt.Sprint(got), "secret") || strings.Contains(fmt.Sprint(got), key) {
		t.Errorf("%s: the engine got %v", resp.Status, got)
	}
}

// Whoever has no right key, or comes from a web page, is turned away before
// anything is routed (T58).
func TestGuard(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana", "echo")
	_, url := a.endpoint("ana", key)
	_, otherURL := a.endpoint("ana", "sk-other")
	host := strings.Split(url, "/")[2]
	port := host[strings.LastIndex(host, ":"):]
	n := 0
	try := func(method, to, host, origin, site, kind, upgrade, auth string) int {
		n++
		req, err := http.NewRequestWithContext(t.Context(), method, to, strings.NewReader(chat("echo", "hi")))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		for k, v := range map[string]string{"Origin": origin, "Sec-Fetch-Site": site, "Content-Type": kind, "Upgrade": upgrade, "Authorization": auth} {
			if v != "" {
				req.Header.Set(k, v)
			}
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	const right, plain = "Bearer " + key, "application/json"
	for _, method := range []string{"GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"} {
		for _, h := range []string{"evil.example" + port, "127.0.0.1.evil.example" + port, "0.0.0.0" + port, "[::]" + port, "localhost.evil.example", "127.0.0.2" + port, "rebind.localhost" + port} {
			for _, kind := range []string{plain, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""} {
				if code := try(method, url+"chat/completions", h, "", "", kind, "", right); code != http.StatusForbidden {
					t.Errorf("%s Host %s %s: %d", method, h, kind, code)
				}
			}
		}
		for _, origin := range []string{"null", "https://evil.example", "http://" + host, "http://localhost" + port, "file://"} {
			for _, kind := range []string{plain, "text/plain", ""} {
				for _, upgrade := range []string{"", "websocket"} {
					if code := try(method, url+"chat/completions", host, origin, "", kind, upgrade, right); code != http.StatusForbidden {
						t.Errorf("%s Origin %s %s %s: %d", method, origin, kind, upgrade, code)
					}
				}
			}
		}
	}
	for _, site := range []string{"cross-site", "same-site", "same-origin"} {
		if code := try("POST", url+"chat/completions", host, "", site, plain, "", right); code != http.StatusForbidden {
			t.Errorf("Sec-Fetch-Site %s: %d", site, code)
		}
	}
	for _, auth := range []string{"", "Bearer", "Bearer ", "Bearer wrong", "bearer " + key, "Basic " + key, key, "Bearer sk-other", right + " "} {
		code := try("POST", url+"chat/completions", host, "", "", plain, "", auth)
		if want := http.StatusUnauthorized; code != want && auth != right+" " { // which Go's client trims
			t.Errorf("key %q: %d", auth, code)
		}
	}
	if code := try("POST", otherURL+"chat/completions", host, "", "", plain, "", right); code != http.StatusUnauthorized {
		t.Errorf("the key of another endpoint: %d", code)
	}
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", ""} {
		if code := try("POST", url+"chat/completions", host, "", "", kind, "", right); code != http.StatusUnsupportedMediaType {
			t.Errorf("kind %q: %d", kind, code)
		}
	}
	if n < 400 {
		t.Errorf("%d combinations", n)
	}
	if seen := a.engine.Total.Load(); seen != 1 { // the one with the space
		t.Errorf("the engine has seen %d requests", seen)
	}
	if code := try("POST", url+"chat/completions", "localhost"+port, "", "none", plain, "", right); code != http.StatusOK {
		t.Errorf("who may: %d", code)
	}
}

// A machine that fails before its first token is replaced by another, and the
// client sees no error.
func TestFailover(t *testing.T) {
	for _, model := range []string{"refuses", "drops"} {
		for _, more := range []string{"", streamed} {
			l := newLab(t)
			a := l.add("alpha", "ana", model+"-or-not")
			b := l.add("beta", "ana", model+"-or-not")
			c := l.add("gamma", "ana")
			good := httpEngine(t, c, model+"-or-not")
			a.busy[c.id] = 2 // so that it comes last
			_, url := a.endpoint("ana", key)
			resp := post(t, t.Context(), url+"chat/completions", key, chat(model+"-or-not", "hi", more))
			got := read(t, resp)
			if resp.StatusCode != 200 || resp.Header.Get(headerNode) != "gamma" || !strings.Contains(got, "fine") {
				t.Errorf("%s%s: %s %s %s", model, more, resp.Status, resp.Header.Get(headerNode), got)
			}
			if a.engine.Total.Load() == 0 || b.engine.Total.Load() == 0 || good.Load() != 1 {
				t.Errorf("%s%s: asked %d, %d, %d", model, more, a.engine.Total.Load(), b.engine.Total.Load(), good.Load())
			}
		}
	}
}

// After the first token a stream ends with an error event, not by hanging.
func TestEngineDies(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana", "dies-here")
	l.add("beta", "ana", "dies-there")
	_, url := a.endpoint("ana", key)
	for _, model := range []string{"dies-here", "dies-there"} {
		got := read(t, post(t, t.Context(), url+"chat/completions", key, chat(model, "a b c d e f", streamed)))
		if strings.Count(got, `"error"`) != 1 || !strings.Contains(got, `"engine_lost"`) || !strings.Contains(got, `"b "`) || strings.Contains(got, "DONE") {
			t.Errorf("%s: %s", model, got)
		}
	}
}

// A machine that has lost its power closes no connection. Before the first token
// another one answers; after it there is an error event.
func TestNodeLost(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana")
	b := l.add("beta", "ana", "slow")
	_, url := a.endpoint("ana", key)
	resp := post(t, t.Context(), url+"chat/completions", key, chat("slow", "", streamed))
	lines := bufio.NewScanner(resp.Body)
	lines.Scan()
	l.lose(b)
	var got strings.Builder
	for lines.Scan() {
		got.WriteString(lines.Text() + "\n")
	}
	if !strings.Contains(got.String(), `"code":"engine_lost"`) || !strings.Contains(got.String(), "has gone") {
		t.Errorf("mid-stream: %s", got.String())
	}

	silent := l.add("gamma", "ana")
	asked := hung(t, silent, "other")
	answered := make(chan answer)
	go func() {
		answered <- post(t, context.Background(), url+"chat/completions", key, chat("other", "hi", streamed))
	}()
	eventually(t, 10*time.Second, "asked", func() bool { return asked.Load() == 1 })
	httpEngine(t, l.add("delta", "ana"), "other")
	l.lose(silent)
	// The ranking was made before delta came: the client has one more word.
	if resp := <-answered; resp.StatusCode != http.StatusBadGateway {
		t.Errorf("the only one is lost: %s", resp.Status)
	}
	if got := read(t, post(t, t.Context(), url+"chat/completions", key, chat("other", "hi", streamed))); !strings.Contains(got, "fine") {
		t.Errorf("after that: %s", got)
	}
}

func TestNodeLostBeforeFirstToken(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana")
	silent := l.add("beta", "ana")
	asked := hung(t, silent, "other")
	second := l.add("gamma", "ana")
	httpEngine(t, second, "other")
	_, url := a.endpoint("ana", key)
	a.mu.Lock()
	a.busy[second.id] = 3 // so that it comes second
	a.mu.Unlock()
	go func() {
		eventually(t, 10*time.Second, "asked", func() bool { return asked.Load() == 1 })
		l.lose(silent)
	}()
	resp := post(t, t.Context(), url+"chat/completions", key, chat("other", "hi", streamed))
	if got := read(t, resp); resp.StatusCode != 200 || resp.Header.Get(headerNode) != "gamma" || !strings.Contains(got, "fine") {
		t.Errorf("%s %s %s", resp.Status, resp.Header.Get(headerNode), got)
	}
}

// Who goes away stops the engine's work within a second, over the mesh too.
func TestCancel(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana", "slow-here")
	b := l.add("beta", "ana", "slow-there")
	_, url := a.endpoint("ana", key)
	for m, model := range map[*machine]string{a: "slow-here", b: "slow-there"} {
		ctx, cancel := context.WithCancel(t.Context())
		resp := post(t, ctx, url+"chat/completions", key, chat(model, "", streamed))
		bufio.NewScanner(resp.Body).Scan()
		if m.engine.Now.Load() != 1 {
			t.Fatalf("%s: %d at work", model, m.engine.Now.Load())
		}
		cancel()
		eventually(t, time.Second, model+": the engine stops", func() bool { return m.engine.Now.Load() == 0 })
	}
}

// A reader that is slow holds the engine back: nothing piles up between them.
func TestSlowReader(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana")
	b := l.add("beta", "ana", "flood")
	_, url := a.endpoint("ana", key)
	resp := post(t, t.Context(), url+"chat/completions", key, chat("flood", "", streamed))
	bufio.NewScanner(resp.Body).Scan()
	var last int64
	eventually(t, 30*time.Second, "the engine waits", func() bool {
		sent := b.engine.Sent.Load()
		time.Sleep(300 * time.Millisecond)
		same := sent == last && sent > 0
		last = sent
		return same
	})
	// Three connections of loopback, whose buffers the kernel grows to some MiB.
	if last > 64<<20 {
		t.Errorf("%d MiB are between the engine and its reader", last>>20)
	}
}

// The owner's terms count at the machine that has the engine, for the one that
// calls and for whom that one asks (T31).
func TestTerms(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ben")
	b := l.add("beta", "ana", "echo", "slow")
	_, url := a.endpoint("ben", key)
	ask := func(model string) (int, string) {
		resp := post(t, t.Context(), url+"chat/completions", key, chat(model, "hi"))
		return resp.StatusCode, read(t, resp)
	}
	if code, got := ask("echo"); code != http.StatusForbidden || !strings.Contains(got, "has not granted its models to ben") {
		t.Errorf("without a grant: %d %s", code, got)
	}
	// The caller's own view is no protection: the machine decides.
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+b.id.String()+PeerPath+"chat/completions", strings.NewReader(chat("echo", "hi")))
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&overlay{l, a}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden || b.engine.Total.Load() != 0 {
		t.Errorf("asked directly: %s", resp.Status)
	}
	l.grant(b, policy.ModelGrant{Owner: "ben", Model: "echo", Requests: 1})
	if code, got := ask("echo"); code != http.StatusOK {
		t.Errorf("with a grant: %d %s", code, got)
	}
	if code, _ := ask("slow"); code != http.StatusForbidden {
		t.Errorf("another model: %d", code)
	}
	l.grant(b, policy.ModelGrant{Owner: "ben", Requests: 1})
	going := post(t, t.Context(), url+"chat/completions", key, chat("slow", "", streamed))
	bufio.NewScanner(going.Body).Scan()
	if code, got := ask("echo"); code != http.StatusTooManyRequests || !strings.Contains(got, "1 requests of ben") {
		t.Errorf("one too many: %d %s", code, got)
	}
	// A run of cleo on a machine of ben gets what both may have.
	_, cleo := a.endpoint("cleo", "sk-cleo")
	if resp := post(t, t.Context(), cleo+"chat/completions", "sk-cleo", chat("echo", "hi")); resp.StatusCode != http.StatusForbidden {
		t.Errorf("cleo by way of ben: %s", resp.Status)
	}
}

// What an owner grants in tokens, and what a run may use, is counted over restarts
// of the node, and used up as OpenAI has it.
func TestTokens(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ben")
	b := l.add("beta", "ana", "echo")
	_, url := a.endpoint("ben", key)
	ask := func(url, stream string) (int, string) {
		resp := post(t, t.Context(), url+"chat/completions", key, chat("echo", "one two", stream))
		return resp.StatusCode, read(t, resp)
	}
	usedUp := func(what string, code int, got, want string) {
		t.Helper()
		if code != http.StatusTooManyRequests || !strings.Contains(got, `"code":"insufficient_quota"`) || !strings.Contains(got, want) {
			t.Errorf("%s: %d %s", what, code, got)
		}
	}
	l.grant(b, policy.ModelGrant{Owner: "ben", Tokens: 10, Per: 24 * time.Hour})
	for _, stream := range []string{"", streamed} { // each takes 4 and 2
		if code, got := ask(url, stream); code != http.StatusOK {
			t.Fatalf("%d %s", code, got)
		}
	}
	code, got := ask(url, "")
	usedUp("granted", code, got, "beta grants ben 10 tokens in 24h, and has given 12")

	kept, err := json.Marshal(b.spent)
	if err != nil {
		t.Fatal(err)
	}
	var again Spent
	if err := json.Unmarshal(kept, &again); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if n := again.within("ben", now)(time.Hour); n != 12 {
		t.Errorf("a later life knows of %d tokens", n)
	}
	if n := again.within("ben", now.Add(25*time.Hour))(24 * time.Hour); n != 0 {
		t.Errorf("a day later %d tokens count", n)
	}

	own := l.add("gamma", "ana", "echo")
	e := own.Open("ana", "r-1", key, Budget{Tokens: 10, Used: 4})
	defer e.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.Serve(ln)
	run := "http://" + ln.Addr().String() + "/v1/"
	if code, got := ask(run, ""); code != http.StatusOK {
		t.Fatalf("%d %s", code, got)
	}
	code, got = ask(run, "")
	usedUp("of a run", code, got, "This run may use 10 tokens, and has used 10")
}

func FuzzSpent(f *testing.F) {
	f.Add([]byte(`{"ben":{"497000":12}}`))
	f.Add([]byte(`{"ben":null}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Spent
		if json.Unmarshal(b, &s) != nil {
			return
		}
		s.add([]string{"ben"}, 1, time.Now())
		if s.within("ben", time.Now())(time.Hour) == 0 {
			t.Error("what was added does not count")
		}
	})
}

// A model that nobody serves is answered with names near to it.
func TestUnknownModel(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana", "llama3.2:3b", "qwen3:8b")
	_, url := a.endpoint("ana", key)
	for asked, want := range map[string]string{"llama3.2": "llama3.2:3b", "qwen3:8c": "qwen3:8b", "gpt-5": "There are llama3.2:3b, qwen3:8b"} {
		resp := post(t, t.Context(), url+"chat/completions", key, chat(asked, "hi"))
		var got struct {
			Error fault `json:"error"`
		}
		if err := json.Unmarshal([]byte(read(t, resp)), &got); err != nil || resp.StatusCode != 404 || got.Error.Code != "model_not_found" || !strings.Contains(got.Error.Message, want) {
			t.Errorf("%s: %s %+v %v", asked, resp.Status, got, err)
		}
	}
	for _, body := range []string{``, `[]`, `{}`, `{"model":1}`, `{"model":"a","model":"b"}`, `{"Model":"a","model":"b"}`, `{"model":"a"} {}`, `{"model":"a"`, `{"model":"a","stream":"yes"}`} {
		if resp := post(t, t.Context(), url+"chat/completions", key, body); resp.StatusCode != 400 {
			t.Errorf("%s: %s", body, resp.Status)
		}
	}
}

// Two hundred streams at one time through one gateway, over the mesh, lose
// nothing.
func TestManyStreams(t *testing.T) {
	l := newLab(t)
	a := l.add("alpha", "ana")
	for _, name := range []string{"beta", "gamma"} {
		l.add(name, "ana", "slow").engine.Words = 20
	}
	e, url := a.endpoint("ana", key)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			got := read(t, post(t, t.Context(), url+"chat/completions", key, chat("slow", fmt.Sprint(i), streamed)))
			if strings.Count(got, "word") != 20 || !strings.HasSuffix(got, "data: [DONE]\n\n") {
				t.Errorf("stream %d: %s", i, got)
			}
		})
	}
	wg.Wait()
	if u := e.Usage(); u.Out != 200*20 || u.Answered != 200 {
		t.Errorf("usage %+v", u)
	}
	if n1, n2 := l.list[1].engine.Total.Load(), l.list[2].engine.Total.Load(); n1+n2 != 200 || n1 < 20 || n2 < 20 { // both share the work, however the machine is loaded
		t.Errorf("%d and %d at the two machines", n1, n2)
	}
}
