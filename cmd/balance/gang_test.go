package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Lines come whole, those of each rank and stream by themselves, and a line that
// does not end is cut.
func TestRankLines(t *testing.T) {
	var r ranks
	long := strings.Repeat("x", maxOpen)
	var got strings.Builder
	for _, part := range []struct {
		rank         int
		stream, text string
	}{{0, "stdout", "one\ntw"}, {1, "stdout", "eins\n"}, {0, "stderr", "oops\n"}, {0, "stdout", "o\n"}, {1, "stdout", long}, {2, "stdout", "open"}} {
		got.Write(r.lines(part.rank, part.stream, []byte(part.text)))
	}
	for rank := range 3 {
		got.Write(r.rest(rank, "stdout"))
	}
	want := "[rank 0] one\n[rank 1] eins\n[rank 0] oops\n[rank 0] two\n[rank 1] " + long + "\n[rank 2] open\n"
	if got.String() != want {
		t.Errorf("got %.200q", got.String())
	}
}

// elements is how many numbers the ranks of allreduce add up.
const elements = 1 << 17

// allreduce is a program for a gang which knows nothing of the mesh. Its ranks
// find the leader as those of torchrun do, add up a vector there, and pass the
// sum of ranks once around the ring of BALANCE_HOSTS:
//
//	allreduce [DIR]
//
// With a folder it then says "begun" and waits there for a file named after its
// rank, whose text is its exit code.
func allreduce() {
	rank, size := number("RANK"), number("WORLD_SIZE")
	sum := star(rank, size, net.JoinHostPort(os.Getenv("MASTER_ADDR"), os.Getenv("MASTER_PORT")))
	around := ring(rank, size, strings.Split(os.Getenv("BALANCE_HOSTS"), ","))
	fmt.Printf("sum %d, around %d, rank %s of %s on %s\n", sum, around, os.Getenv("BALANCE_RANK"), os.Getenv("BALANCE_SIZE"), os.Getenv("BALANCE_NODE"))
	if len(os.Args) < 2 {
		return
	}
	fmt.Println("begun")
	for {
		text, err := os.ReadFile(fmt.Sprintf("%s/%d", os.Args[1], rank))
		if code, err2 := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && err2 == nil {
			os.Exit(code)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func number(name string) int {
	n, err := strconv.Atoi(os.Getenv(name))
	must(err)
	return n
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "allreduce:", err)
		os.Exit(1)
	}
}

// star adds up what the ranks have: each sends its vector to the leader and gets
// the sum.
func star(rank, size int, leader string) uint64 {
	mine := slices.Repeat([]uint64{uint64(rank + 1)}, elements)
	if rank > 0 {
		c := dialRank(leader)
		defer c.Close()
		must(binary.Write(c, binary.BigEndian, mine))
		must(binary.Read(c, binary.BigEndian, mine))
		return mine[elements-1]
	}
	ln, err := net.Listen("tcp", leader)
	must(err)
	defer ln.Close()
	others := make([]net.Conn, size-1)
	for i := range others {
		others[i], err = ln.Accept()
		must(err)
		theirs := make([]uint64, elements)
		must(binary.Read(others[i], binary.BigEndian, theirs))
		for k := range mine {
			mine[k] += theirs[k]
		}
	}
	for _, c := range others {
		must(binary.Write(c, binary.BigEndian, mine))
		_, _ = io.Copy(io.Discard, c) // it has all of it
		c.Close()
	}
	return mine[elements-1]
}

// ring passes a number from each rank to the next one, which adds its own.
func ring(rank, size int, hosts []string) uint64 {
	ln, err := net.Listen("tcp", hosts[rank])
	must(err)
	defer ln.Close()
	var total uint64
	receive := func() {
		c, err := ln.Accept()
		must(err)
		defer c.Close()
		must(binary.Read(c, binary.BigEndian, &total))
	}
	if rank > 0 {
		receive()
	}
	next := dialRank(hosts[(rank+1)%size])
	must(binary.Write(next, binary.BigEndian, total+uint64(rank)))
	must(next.Close())
	if rank == 0 {
		receive()
	}
	return total
}

func dialRank(addr string) net.Conn {
	c, err := net.DialTimeout("tcp", addr, 30*time.Second)
	must(err)
	return c
}
