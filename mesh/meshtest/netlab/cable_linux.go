package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// cable carries frames between two interfaces of one namespace, late and with
// losses.
type cable struct {
	ends [2]*os.File   // packet sockets
	late [2]chan frame // what came from an end and is on its way
	run  sync.WaitGroup

	mu    sync.Mutex
	delay time.Duration
	loss  float64
}

// frame arrives at a time.
type frame struct {
	due  time.Time
	data []byte
}

// A cable has at most so many frames on their way in each direction; others are
// lost. A frame may be a batch of segments of 64 KiB together.
const (
	inFlight = 4096
	maxFrame = 64<<10 + 256
)

func newCable(ns *namespace, a, b string) (*cable, error) {
	c := &cable{}
	for i, name := range []string{a, b} {
		err := ns.do(func() (err error) { c.ends[i], err = openPacket(name); return err })
		if err != nil {
			if i == 1 {
				c.ends[0].Close()
			}
			return nil, fmt.Errorf("packet socket: %w", err)
		}
		c.late[i] = make(chan frame, inFlight)
	}
	for i := range c.ends {
		c.run.Go(func() { c.take(i) })
		c.run.Go(func() { c.deliver(i) })
	}
	return c, nil
}

// openPacket opens a socket for all frames that come in through an interface of
// the caller's namespace. Each has a header in front (linux/virtio_net.h) that
// says which work on it is left to the network card, so that what was sent as a
// batch of segments, or without a checksum, goes on as it is.
func openPacket(name string) (*os.File, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	err = errors.Join(
		unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.Bind(s, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}),
	)
	if err != nil {
		_ = unix.Close(s)
		return nil, err
	}
	return os.NewFile(uintptr(s), name), nil
}

func (c *cable) shape(delay time.Duration, loss float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay, c.loss = delay, loss
}

// take reads what comes in at an end until the cable is closed.
func (c *cable) take(end int) {
	defer close(c.late[end])
	buf := make([]byte, maxFrame)
	for {
		n, err := c.ends[end].Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed), errors.Is(err, unix.ENODEV):
			return
		case err != nil:
			continue // the interface is down
		}
		c.mu.Lock()
		delay, lost := c.delay, rand.Float64() < c.loss
		c.mu.Unlock()
		if lost {
			continue
		}
		select {
		case c.late[end] <- frame{time.Now().Add(delay), slices.Clone(buf[:n])}:
		default:
		}
	}
}

// deliver sends what came in at an end out of the other.
func (c *cable) deliver(end int) {
	for f := range c.late[end] {
		time.Sleep(time.Until(f.due))
		_, _ = c.ends[1-end].Write(f.data) // a frame may be lost
	}
}

func (c *cable) close() {
	for _, e := range c.ends {
		e.Close()
	}
	c.run.Wait()
}
