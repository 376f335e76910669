package main

import (
	"bytes"
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
