package discovery

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/mesh/identity"
)

// The tests on a network of namespaces start this test program again for each
// host. It plays the role that this variable names until its standard input
// ends, and begins when it has read a line.
const (
	roleEnv   = "DISCOVERY_TEST_ROLE"
	numberEnv = "DISCOVERY_TEST_NUMBER" // of the member
)

func play(role string) {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	switch role {
	case "hub":
		<-ctx.Done()
	case "member":
		playMember(ctx)
	case "flood":
		playFlood(ctx)
	case "capture":
		playCapture(ctx)
	}
}

// playMember prints "found NUMBER ADDRESS" for what it finds, and at the end
// "cpu SECONDS" and "wall SECONDS".
func playMember(ctx context.Context) {
	n, _ := strconv.Atoi(os.Getenv(numberEnv))
	cfg := testConfig(n, members(labMembers), &finds{})
	start := time.Now()
	cfg.Found = func(id identity.ID, addrs []netip.AddrPort) {
		for i := range labMembers {
			for _, a := range addrs {
				if id == member(i) {
					fmt.Printf("found %d %v after %v\n", i, a, time.Since(start).Round(time.Millisecond))
				}
			}
		}
	}
	lan := Start(cfg)
	before := cpuTime()
	<-ctx.Done()
	fmt.Printf("cpu %.3f of %.3f s\n", (cpuTime() - before).Seconds(), time.Since(start).Seconds())
	lan.Close()
}

func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// playFlood sends 10,000 packets a second to the group: announcements with
// forged tags, with members' tags and forged addresses, queries for us, other
// queries, and noise.
func playFlood(ctx context.Context) {
	ifi, err := net.InterfaceByName("lan")
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, group, err := joinGroup(ifi, false)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = conn.Close() }()
	packets := hostilePackets(1000)
	sent := 0
	for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-tick.C {
		for range 10 {
			if _, err := conn.WriteToUDPAddrPort(packets[sent%len(packets)], group); err == nil {
				sent++
			}
		}
	}
	fmt.Println("sent", sent)
}

// playCapture prints every frame that passes the hub, in hexadecimal.
func playCapture(ctx context.Context) {
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // big endian
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all&0xffff)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = unix.Close(fd) }()
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	fmt.Println("capturing")
	buf := make([]byte, 65536)
	for ctx.Err() == nil {
		if n, _, err := unix.Recvfrom(fd, buf, 0); err == nil {
			fmt.Printf("%x\n", buf[:n])
		}
	}
}
