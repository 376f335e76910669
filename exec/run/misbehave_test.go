package run

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// What a flood writes, again and again.
const floodLine = "0123456789abcdef0123456789abcde\n"

var floodText = strings.Repeat(floodLine, 2048)

// misbehave is the program that does on order what programs do.
func misbehave(mode string, args []string) {
	switch mode {
	case "stubborn": // ignores SIGTERM, as all that it starts does
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP)
		again("child", false, args...)
		again("orphan", false, args...)
		again("orphan", true, args...)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "leaver": // ends, and leaves others behind
		again("orphan", false, args...)
		again("orphan", true, args...)
	case "orphan": // its parent ends, and it has its own session
		again("child", true, args...)
	case "child":
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP)
		report(args[0])
		time.Sleep(time.Hour)
	case "holder": // leaves somebody who holds its output
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		fmt.Println("gone")
	case "flood":
		b, mib := []byte(floodText), 64
		if len(args) > 0 {
			mib, _ = strconv.Atoi(args[0]) // of a test
		}
		for range 16 * mib {
			if _, err := os.Stdout.Write(b); err != nil {
				panic(err)
			}
		}
	case "visit":
		visit(args)
	case "echo": // a rank that says back what others say
		ln, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("BALANCE_PORT"))
		if err != nil {
			panic(err)
		}
		for {
			c, err := ln.Accept()
			if err != nil {
				panic(err)
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	case "hog":
		hog()
	case "signal":
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
		time.Sleep(time.Hour)
	case "drip": // writes its standard input byte by byte
		b := make([]byte, 1)
		for {
			n, err := os.Stdin.Read(b)
			if _, werr := os.Stdout.Write(b[:n]); err != nil || werr != nil {
				return
			}
		}
	case "daemon":
		daemon(args)
	default:
		panic(mode)
	}
}

// again starts this binary in another mode, in a session of its own or not,
// with nothing open.
func again(mode string, setsid bool, args ...string) {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), modeVar+"="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: setsid}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	if mode == "orphan" {
		_ = cmd.Wait()
	}
}

// report appends this process's id to a file.
func report(path string) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(f, "%d\n", os.Getpid())
	f.Close()
}

// daemon is a node that is about to be killed: its ledger is in a file, one
// entry a line. It runs one order, of which the spec is in another.
func daemon(args []string) {
	dir, ledgerFile, specFile, blobs := args[0], args[1], args[2], args[3]
	l, err := openLedgerFile(ledgerFile)
	if err != nil {
		panic(err)
	}
	store, err := blob.Open(blobs)
	if err != nil {
		panic(err)
	}
	r, err := Open(context.Background(), Config{
		Dir: dir, Self: nodeKey.ID(), Name: "hydra", Ledger: l, Blobs: store, Grace: 300 * time.Millisecond,
		Admit: func(Ask) (Grant, []task.Reason) { return Grant{}, nil },
		Fetch: func(context.Context, identity.ID, wire.Hash, int64) (io.ReadCloser, error) {
			return nil, os.ErrNotExist
		},
	})
	if err != nil {
		panic(err)
	}
	o, err := readOrder(specFile)
	if err != nil {
		panic(err)
	}
	fmt.Println("open")
	err = r.Start(context.Background(), o, func(e *task.Event) error {
		fmt.Printf("%s %d %s\n", e.Type, e.Seq, strings.TrimSpace(e.Data))
		return nil
	})
	fmt.Println("done", err)
	time.Sleep(time.Hour)
}

func openLedgerFile(path string) (*ledger, error) {
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l := newLedger()
	for line := range strings.Lines(string(b)) {
		raw, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		e, err := wire.ParseEntry(raw)
		if err != nil {
			return nil, err
		}
		l.topics[e.Topic] = append(l.topics[e.Topic], e)
	}
	l.file, err = os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	return l, err
}

// writeOrder and readOrder keep an order in a file, one entry a line.
func writeOrder(path string, o task.Order) error {
	var b strings.Builder
	for _, e := range o.Entries {
		fmt.Fprintf(&b, "%x\n", e.Encode())
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}

func readOrder(path string) (task.Order, error) {
	l, err := openLedgerFile(path)
	if err != nil {
		return task.Order{}, err
	}
	l.file.Close()
	for run, entries := range l.topics {
		return task.Order{Run: run, Attempt: 1, From: entries[0].Author, Entries: entries}, nil
	}
	return task.Order{}, os.ErrNotExist
}

// hog wants 512 MiB of memory.
func hog() {
	var kept [][]byte
	for range 64 {
		kept = append(kept, bytes.Repeat([]byte{1}, 8<<20))
	}
	fmt.Println(len(kept))
}

// visit asks the proxy that it was told of for pages, and then tries without.
func visit(urls []string) {
	proxy := http.ProxyFromEnvironment
	if v := os.Getenv("HTTP_PROXY"); v != "" {
		at, err := url.Parse(v)
		if err != nil {
			panic(err)
		}
		proxy = http.ProxyURL(at) // for every address: there is nothing else
	}
	c := &http.Client{Transport: &http.Transport{Proxy: proxy}, Timeout: 20 * time.Second}
	for _, u := range urls {
		resp, err := c.Get(u) //nolint:noctx // a client with a timeout
		if err != nil {
			fmt.Printf("%s: %v\n", u, err)
			continue
		}
		b, _ := io.ReadAll(resp.Body) // what there is
		resp.Body.Close()
		fmt.Printf("%s: %d %s\n", u, resp.StatusCode, b)
	}
	if _, err := net.DialTimeout("tcp", "192.0.2.1:80", time.Second); err != nil {
		fmt.Println("direct: no")
	}
	if _, err := net.LookupHost("example.invalid"); err != nil { //nolint:noctx // there is nobody to ask
		fmt.Println("lookup: no")
	}
}
