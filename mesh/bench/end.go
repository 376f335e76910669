package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// What a connection is for: its first byte.
const (
	echo = 'e' // comes back
	sink = 's' // is thrown away, and its end answered with a byte
)

// port is the TCP port of the server.
const port = 9

// network is what is measured, at one end.
type network interface {
	name() string // a word by which the other end knows this one
	// connect makes all ends known, by place. The network is up when it returns.
	connect(names []string) error
	listen() (net.Listener, error)
	dial(ctx context.Context) (net.Conn, error) // to the other end
	// process is the program beside this one that carries the network; 0: none.
	process() int
	close()
}

// tools are what is beside the project.
type tools struct {
	nebula string // the program; empty: it is not measured
	folder string // for what they write
}

// serveEnd is an end of a network, until standard input ends.
func serveEnd(name string, place int, profiles string, t tools) error {
	systems := systemsWith(t)
	i := slices.IndexFunc(systems, func(s system) bool { return s.name == name })
	if i < 0 {
		return fmt.Errorf("no network %q", name)
	}
	n, err := systems[i].open(place)
	if err != nil {
		return err
	}
	defer n.close()
	in := bufio.NewScanner(os.Stdin)
	fmt.Println(n.name())
	if !in.Scan() {
		return nil
	}
	if err := n.connect(strings.Fields(in.Text())); err != nil {
		return err
	}
	if place == server {
		l, err := n.listen()
		if err != nil {
			return err
		}
		go serve(l)
	}
	if profiles != "" {
		stop, err := profile(filepath.Join(profiles, fmt.Sprintf("%s-%s.pprof", name, placeNames[place])))
		if err != nil {
			return err
		}
		defer stop()
	}
	fmt.Println(n.process())
	for in.Scan() {
		if err := obey(n, in.Text()); err != nil {
			return err
		}
	}
	return in.Err()
}

func profile(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, pprof.StartCPUProfile(f)
}

func obey(n network, command string) error {
	var trips, streams int
	var length time.Duration
	if _, err := fmt.Sscanf(command, "trip %d", &trips); err == nil {
		took, err := trip(n, trips)
		fmt.Println(took.Microseconds())
		return err
	}
	if _, err := fmt.Sscanf(command, "load %d %d", &streams, &length); err == nil {
		sent, took, err := load(n, streams, length)
		fmt.Println(sent, took.Nanoseconds())
		return err
	}
	return fmt.Errorf("unknown command %q", command)
}

func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var purpose [1]byte
			if _, err := io.ReadFull(c, purpose[:]); err != nil {
				return
			}
			buf := make([]byte, 128<<10)
			for {
				n, err := c.Read(buf)
				if purpose[0] == echo {
					_, _ = c.Write(buf[:n]) // the client fails
				}
				if err != nil {
					break
				}
			}
			_, _ = c.Write(purpose[:])
		}()
	}
}

// open connects to the server, which may just have started.
func open(n network, purpose byte) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		c, err := n.dial(ctx)
		if err == nil {
			_, err = c.Write([]byte{purpose})
			return c, err
		}
		if ctx.Err() != nil {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// trip is the median time for 64 bytes to come back.
func trip(n network, trips int) (time.Duration, error) {
	c, err := open(n, echo)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 64)
	all := make([]time.Duration, trips)
	for i := range all {
		begin := time.Now()
		if _, err := c.Write(buf); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return 0, err
		}
		all[i] = time.Since(begin)
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

// load sends for a while. What is sent has arrived when it returns.
func load(n network, streams int, length time.Duration) (sent int64, took time.Duration, err error) {
	var conns []net.Conn
	for range streams {
		c, err := open(n, sink)
		if err != nil {
			return 0, 0, err
		}
		defer c.Close()
		conns = append(conns, c)
	}
	var total atomic.Int64
	errs := make([]error, streams)
	var group sync.WaitGroup
	begin := time.Now()
	for i, c := range conns {
		group.Go(func() {
			buf := make([]byte, 128<<10)
			for time.Since(begin) < length && errs[i] == nil {
				_, errs[i] = c.Write(buf)
				total.Add(int64(len(buf)))
			}
			if errs[i] == nil {
				errs[i] = c.(interface{ CloseWrite() error }).CloseWrite()
			}
			if errs[i] == nil {
				_, errs[i] = io.ReadFull(c, buf[:1])
			}
		})
	}
	group.Wait()
	return total.Load(), time.Since(begin), errors.Join(errs...)
}
