package discovery

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

var (
	group4 = netip.MustParseAddr("224.0.0.251")
	group6 = netip.MustParseAddr("ff02::fb")
)

// After each batch of packets a link pauses for a moment, so that in a flood packets wait in
// the socket and do not wake the goroutine one by one, and what comes faster
// than 10,000 a second is dropped by the kernel.
const (
	readBatch = 64
	readPause = 6 * time.Millisecond
)

// link is one address family on one interface: a socket, and the goroutine
// that owns the socket's speaker.
type link struct {
	conn    *net.UDPConn
	speaker speaker
	wakeup  time.Time     // until when a read waits
	done    chan struct{} // closed when the goroutine has ended

	mu    sync.Mutex
	order order // what the goroutine is to do next
}

type order struct {
	restart, stop bool
	here          []netip.Prefix // nil for no change
}

// openLink joins the group on an interface and starts to announce and listen.
func openLink(cfg *Config, b *book, ifi net.Interface, v6 bool, here []netip.Prefix) (*link, error) {
	conn, group, err := joinGroup(&ifi, v6)
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, done: make(chan struct{}), order: order{here: here}}
	l.speaker = speaker{
		cfg: cfg, book: b, zone: ifi.Name, group: group, limit: newLimiter(),
		send: func(packet []byte, to netip.AddrPort) {
			// A packet that cannot be sent is like one that is lost.
			_, _ = conn.WriteToUDPAddrPort(packet, to)
		},
	}
	go l.run()
	return l, nil
}

// tell gives an order to the goroutine and wakes it.
func (l *link) tell(change func(*order)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.order)
	_ = l.conn.SetReadDeadline(time.Unix(1, 0))
}

// close says goodbye and waits for the goroutine.
func (l *link) close() {
	l.tell(func(o *order) { o.stop = true })
	<-l.done
}

func (l *link) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *link) run() {
	defer close(l.done)
	l.serve()
	_ = l.conn.Close()
}

// serve ends when told, or when the socket fails, as it does when the interface
// goes away.
func (l *link) serve() {
	buf := make([]byte, maxPacket)
	for i := 1; l.obey(); i++ {
		n, from, err := l.conn.ReadFromUDPAddrPort(buf)
		now := time.Now()
		if err == nil {
			l.speaker.receive(buf[:n], from, now)
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		l.speaker.tick(now)
		if i%readBatch == 0 {
			time.Sleep(readPause)
		}
	}
	l.speaker.shout(0, time.Now())
}

// obey carries out orders until there are none, sets the time at which the
// next read ends, and reports whether to go on.
func (l *link) obey() bool {
	for {
		now := time.Now()
		l.mu.Lock()
		o := l.order
		l.order = order{}
		if !o.stop && !o.restart && o.here == nil {
			if at := l.speaker.next(); !at.Equal(l.wakeup) {
				_ = l.conn.SetReadDeadline(at)
				l.wakeup = at
			}
			l.mu.Unlock()
			return true
		}
		l.wakeup = time.Time{} // tell has moved it
		l.mu.Unlock()
		if o.stop {
			return false
		}
		if o.here != nil {
			l.speaker.settle(o.here, now)
		}
		if o.restart {
			l.speaker.restart(now)
		}
	}
}
