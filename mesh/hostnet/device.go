package hostnet

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// Device joins the host's interface and the node's own stack to the one device
// that WireGuard reads and writes.
type Device struct {
	host   tun.Device // the kernel's end
	node   tun.Device // the node's own stack
	name   string     // of the interface
	index  int
	filter filter
	// restore gives the interface its address and route again, which the kernel
	// drops when somebody takes it down.
	restore func() error
	log     *slog.Logger

	ready chan *batch // what the node's stack sends; see feed
	free  chan *batch
	turn  bool // the host's, if both have something; of Read's goroutine
	gone  bool // somebody has deleted the interface; of Read's goroutine

	done chan struct{}
	once sync.Once // closes done
	work sync.WaitGroup
}

// batch is some packets of the node's stack on their way.
type batch struct {
	bufs  [][]byte
	sizes []int
	n     int
}

// batches is how many batches of the node's stack there are: one is filled while
// the other is read.
const batches = 2

func newDevice(cfg Config, host tun.Device) *Device {
	d := &Device{
		host: host,
		node: cfg.Node,
		filter: filter{
			self: cfg.Addr, prefix: cfg.Prefix, private: cfg.Private, open: cfg.Open, joiner: cfg.Joiner, owns: cfg.Owns,
		},
		log:   cfg.Log,
		ready: make(chan *batch, batches),
		free:  make(chan *batch, batches),
		done:  make(chan struct{}),
	}
	for range batches {
		b := &batch{bufs: make([][]byte, cfg.Node.BatchSize()), sizes: make([]int, cfg.Node.BatchSize())}
		for i := range b.bufs {
			b.bufs[i] = make([]byte, cfg.MTU)
		}
		d.free <- b
	}
	return d
}

// start begins what runs beside WireGuard; Close ends it.
func (d *Device) start() {
	d.work.Go(d.feed)
	d.work.Go(d.watch)
}

// Interface returns the interface's name and index, which stay the same.
func (d *Device) Interface() (string, int) { return d.name, d.index }

// feed reads what the node's stack sends, and interrupts the reading of the
// interface for each batch.
func (d *Device) feed() {
	for {
		var b *batch
		select {
		case b = <-d.free:
		case <-d.done:
			return
		}
		n, err := d.node.Read(b.bufs, b.sizes, 0)
		if err != nil {
			return // it is closed
		}
		b.n = n
		d.ready <- b
		_ = d.host.File().SetReadDeadline(time.Unix(1, 0)) // closed: so is all of it
	}
}

// watch puts the interface right when somebody has taken it down and up again.
func (d *Device) watch() {
	for e := range d.host.Events() {
		if e != tun.EventUp || d.isClosed() {
			continue
		}
		if err := d.restore(); err != nil {
			d.log.Warn("restore the interface of the mesh", "interface", d.name, "error", err)
		}
	}
}

func (d *Device) isClosed() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// Read gives WireGuard what the node's stack or programs of the host send. A
// packet that may not go has the size 0, over which WireGuard passes.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		if n := d.fromNode(bufs, sizes, offset); n > 0 {
			return n, nil
		}
		if d.isClosed() {
			return 0, os.ErrClosed
		}
		n, err := d.host.Read(bufs, sizes, offset)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			// The deadline goes before the next look at the batches, so that
			// the one that sets it again is not missed.
			_ = d.host.File().SetReadDeadline(time.Time{})
		case errors.Is(err, os.ErrClosed):
			if d.gone = !d.isClosed(); d.gone {
				d.log.Error("the interface of the mesh was deleted: programs of the host cannot use the mesh until the node starts again", "interface", d.name)
			}
		default:
			now, m := time.Now(), memo{}
			for i := range n {
				if !d.filter.out(bufs[i][offset:offset+sizes[i]], now, &m) {
					sizes[i] = 0
				}
			}
			return n, err
		}
	}
}

// fromNode copies a batch of the node's stack, if there is one. It takes turns
// with the interface, and waits where there is no interface any more.
func (d *Device) fromNode(bufs [][]byte, sizes []int, offset int) int {
	var b *batch
	switch {
	case d.gone:
		select {
		case b = <-d.ready:
		case <-d.done:
			return 0
		}
	case len(d.ready) == 0:
		return 0
	case d.turn && readable(d.host.File()):
		d.turn = false
		_ = d.host.File().SetReadDeadline(time.Time{})
		return 0
	default:
		b = <-d.ready
	}
	d.turn = true
	for i, size := range b.sizes[:b.n] {
		sizes[i] = copy(bufs[i][offset:], b.bufs[i][:size])
	}
	n := b.n
	d.free <- b
	return n
}

// readable reports whether a read would find something at once.
func readable(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = conn.Control(func(fd uintptr) {
		n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	})
	return err == nil && n > 0
}

// Write takes packets that WireGuard received to the host and to the node's
// stack. Packets for one of them that follow each other stay together.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	var errs error
	now, m := time.Now(), memo{}
	first, to := 0, drop
	for i, b := range bufs {
		v := d.filter.in(b[offset:], now, &m)
		if v == to {
			continue
		}
		errs = errors.Join(errs, d.deliver(bufs[first:i], offset, to))
		first, to = i, v
	}
	return len(bufs), errors.Join(errs, d.deliver(bufs[first:], offset, to))
}

func (d *Device) deliver(bufs [][]byte, offset int, to verdict) (err error) {
	switch {
	case len(bufs) == 0:
	case to == toNode:
		_, err = d.node.Write(bufs, offset)
	case to == toHost:
		_, err = d.host.Write(bufs, offset)
	}
	return err
}

// MTU returns the largest packet in bytes.
func (d *Device) MTU() (int, error) { return d.node.MTU() }

// Name returns the interface's name, for logs.
func (d *Device) Name() (string, error) { return d.name, nil }

// File returns the file behind the interface.
func (d *Device) File() *os.File { return d.host.File() }

// BatchSize returns how many packets Read gives at most.
func (d *Device) BatchSize() int { return max(d.host.BatchSize(), d.node.BatchSize()) }

// Events returns a channel that says nothing and is closed with the device: the
// tunnel stays when somebody takes the interface down, as the node needs it.
func (d *Device) Events() <-chan tun.Event { return d.node.Events() }

// Close takes the interface away, with its address and route, and closes the
// node's stack.
func (d *Device) Close() error {
	var err error
	d.once.Do(func() {
		close(d.done)
		err = d.host.Close()
		if errors.Is(err, os.ErrClosed) {
			err = nil
		}
		err = errors.Join(err, d.node.Close())
		d.work.Wait()
	})
	return err
}
