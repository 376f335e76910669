package supervise

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// server tells nodes what happens, and does what they say.
type server struct {
	wg      sync.WaitGroup // of those that tell
	private Private

	mu       sync.Mutex
	watchers map[*watcher]bool
	started  time.Time // zero: not yet
	grown    int       // how often the log has
	over     bool
	program  *program // nil before and after
	stdin    *stdin   // nil for none, or not yet
	ending   *End     // the first one counts
	force    bool     // it was asked for before there was a program
}

// watcher is a node that is told what happens. What it has not been told yet it
// is told at once, however long it has not read.
type watcher struct {
	wake    chan struct{}
	started bool
	grown   int
}

func (s *server) accept(ln *net.UnixListener) {
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // no file to be had
			continue
		}
		go s.greet(conn)
	}
}

// greet finds out what somebody wants.
func (s *server) greet(conn net.Conn) {
	in := bufio.NewReaderSize(conn, 512)
	line, err := in.ReadString('\n')
	if err != nil {
		conn.Close()
		return
	}
	switch strings.TrimSuffix(line, "\n") {
	case "watch":
		s.watch(conn, in)
	case "kept":
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "%s\n", hello); err == nil {
			_ = json.NewEncoder(conn).Encode(s.private.Keep) // who has gone asks again
		}
	case "stdin":
		defer conn.Close()
		s.mu.Lock()
		to := s.stdin
		s.mu.Unlock()
		if _, err := fmt.Fprintf(conn, "%s\n", hello); err == nil && to != nil {
			to.serve(conn, in)
		}
	default:
		fmt.Fprintf(conn, "%s\n", hello)
		conn.Close()
	}
}

// watch tells somebody what happens, and does what it says.
func (s *server) watch(conn net.Conn, in *bufio.Reader) {
	w := &watcher{wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[w] = true
	s.wg.Go(func() {
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "%s\n", hello); err != nil {
			return
		}
		for s.next(w, conn) {
		}
	})
	go func() {
		s.obey(in)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, w)
		close(w.wake)
	}()
}

// next tells what is new, and reports whether there can be more.
func (s *server) next(w *watcher, conn net.Conn) bool {
	s.mu.Lock()
	var say []byte
	if !w.started && !s.started.IsZero() {
		w.started = true
		say = fmt.Appendf(say, "s %d\n", s.started.UnixMilli())
	}
	if w.grown != s.grown {
		w.grown = s.grown
		say = append(say, "o\n"...)
	}
	over := s.over
	if over {
		say = append(say, "x\n"...)
	}
	s.mu.Unlock()
	if len(say) > 0 {
		if _, err := conn.Write(say); err != nil || over {
			return false
		}
		return true
	}
	_, more := <-w.wake
	return more
}

// news wakes all after a change.
func (s *server) newsLocked() {
	for w := range s.watchers {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (s *server) logGrown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grown++
	s.newsLocked()
}

// finish says that the exit is written, and does not wait long for those who do
// not listen: they will see that this process is gone.
func (s *server) finish() {
	s.mu.Lock()
	s.over = true
	s.newsLocked()
	s.mu.Unlock()
	said := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(said)
	}()
	select {
	case <-said:
	case <-time.After(time.Second):
	}
}

// obey reads what a node says, until it leaves.
func (s *server) obey(in *bufio.Reader) {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		what, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch what {
		case "end":
			how, why, _ := strings.Cut(rest, " ")
			var e End
			if json.Unmarshal([]byte(why), &e) == nil {
				s.end(e, how == "1")
			}
		case "hold":
			s.hold(rest == "1")
		case "size":
			var size Size
			if _, err := fmt.Sscan(rest, &size.Rows, &size.Cols); err == nil {
				s.resize(size)
			}
		}
	}
}

// end makes the run end: at once with force, else after the grace time. The
// first reason counts.
func (s *server) end(why End, force bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending == nil {
		s.ending = &why
	}
	s.force = s.force || force
	if s.program != nil {
		s.program.end(s.force, s.ending.Grace)
	}
}

// hold has the run stand still, or go on. One that is to end goes on.
func (s *server) hold(still bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.program != nil && s.ending == nil {
		_ = s.program.hold(still) // what cannot be held goes on
	}
}

func (s *server) resize(size Size) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.program != nil && s.program.terminal != nil {
		_ = size.set(s.program.terminal) // one that has ended has none
	}
}

// set says what runs now.
func (s *server) set(p *program, in *stdin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.program, s.stdin, s.started = p, in, p.began
	s.newsLocked()
	if s.ending != nil {
		p.end(s.force, s.ending.Grace)
	}
}

// clear says that the program has ended, and returns why it was made to.
func (s *server) clear() *End {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.program = nil
	return s.ending
}

// asked returns why the run is to end.
func (s *server) asked() *End {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}
