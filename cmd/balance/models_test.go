package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/gateway/enginetest"
)

// engine is a model server for scripts, on any port of loopback, which it prints:
// engine MODEL…
func engine() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	switch os.Args[1] {
	case "gguf":
		tinyGGUF(os.Args[2])
		return
	case "llama-server":
		llamaServer(os.Args[2:])
	}
	e := &enginetest.Engine{Models: os.Args[1:], Words: 200}
	fmt.Println(ln.Addr().(*net.TCPAddr).Port)
	go func() { // so that a script sees whether it works
		for range time.Tick(50 * time.Millisecond) {
			_ = os.WriteFile("engine-"+os.Args[1], fmt.Appendf(nil, "%d now, %d in all\n", e.Now.Load(), e.Total.Load()), 0o600)
		}
	}()
	fmt.Fprintln(os.Stderr, http.Serve(ln, e))
	os.Exit(1)
}

// llamaServer is llama-server as far as a script needs it: it loads weights, which
// takes a moment, says which process it is, and answers for them. Broken ones it
// cannot load.
func llamaServer(args []string) {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Println("version: 6000 (test)")
		os.Exit(0)
	}
	given := map[string]string{}
	for i := 0; i+1 < len(args); i++ {
		if strings.HasPrefix(args[i], "--") {
			given[args[i]] = args[i+1]
		}
	}
	weights, err := os.ReadFile(given["--model"])
	if err == nil && !bytes.HasPrefix(weights, []byte("GGUF")) {
		err = fmt.Errorf("%s: no weights", given["--model"])
	}
	if err == nil && bytes.Contains(weights, []byte("broken")) {
		err = fmt.Errorf("cannot load %s", given["--model"])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "llama-server:", err)
		os.Exit(1)
	}
	fmt.Println(os.Getpid())
	e := &enginetest.Engine{Models: []string{given["--alias"]}, Owner: "llamacpp", Loads: 500 * time.Millisecond}
	fmt.Fprintln(os.Stderr, http.ListenAndServe(net.JoinHostPort(given["--host"], given["--port"]), e))
	os.Exit(1)
}

// tinyGGUF writes the header of a model to a file, which has its name in it.
func tinyGGUF(path string) {
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // into memory
	text := func(s string) { put(uint64(len(s))); b.WriteString(s) }
	number := func(key string, n uint32) { text(key); put(uint32(4)); put(n) }
	b.WriteString("GGUF")
	put(uint32(3))
	put(uint64(0))
	put(uint64(6))
	for key, value := range map[string]string{"general.architecture": "llama", "general.name": path} {
		text(key)
		put(uint32(8))
		text(value)
	}
	number("llama.context_length", 2048)
	number("llama.block_count", 2)
	number("llama.embedding_length", 64)
	number("llama.attention.head_count", 2)
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// askModel asks a model as a client of OpenAI does, by the environment, and prints
// who answered, and what: ask TEXT [FIELD,…]
func askModel() {
	body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}]%s}`, os.Getenv("OPENAI_MODEL"), os.Args[1], strings.Join(os.Args[2:], ""))
	req, err := http.NewRequest(http.MethodPost, os.Getenv("OPENAI_BASE_URL")+"/chat/completions", bytes.NewReader([]byte(body)))
	if err == nil {
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+os.Getenv("OPENAI_API_KEY"))
		var resp *http.Response
		if resp, err = http.DefaultClient.Do(req); err == nil {
			fmt.Println(resp.Status, resp.Header.Get("Balance-Node"), "("+resp.Header.Get("Balance-Why")+")")
			_, err = io.Copy(os.Stdout, resp.Body)
			resp.Body.Close()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ask:", err)
		os.Exit(1)
	}
}

// a2a is an agent that serves, at the port that it is given: it has a card, and
// answers with what it is sent.
func a2a() {
	at := "127.0.0.1:" + os.Getenv("BALANCE_PORT")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /card", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"name":"echo","url":"http://%s/a2a"}`, at)
	})
	mux.HandleFunc("POST /a2a", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	fmt.Fprintln(os.Stderr, http.ListenAndServe(at, mux))
	os.Exit(1)
}
