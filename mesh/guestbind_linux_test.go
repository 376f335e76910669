package mesh

import (
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// Answers come from the address that was asked, whichever of the host's it is: a
// socket that is connected takes no others, like many a router.
func TestGuestBindAnswersFromWhereItWasAsked(t *testing.T) {
	b := &guestBind{at: netip.IPv6Unspecified()}
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	for _, receive := range fns {
		go func() {
			defer func() { done <- struct{}{} }()
			bufs, sizes, ends := [][]byte{make([]byte, 2048)}, make([]int, 1), make([]conn.Endpoint, 1)
			for {
				n, err := receive(bufs, sizes, ends)
				if err != nil {
					return
				}
				for range n {
					_ = b.Send([][]byte{bufs[0][:sizes[0]]}, ends[0])
				}
			}
		}()
	}
	hosts := []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"}
	if len(fns) == 2 {
		hosts = append(hosts, "::1")
	}
	for _, host := range hosts {
		c, err := net.Dial("udp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if err := exchange(c, patience); err != nil {
			t.Errorf("asked at %s: %v", host, err)
		}
		c.Close()
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	for range fns {
		<-done
	}
}
