package netstack

import (
	"encoding/binary"
	"math"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	queued = 64  // packets from the stack, of up to 64 KiB, that wait for WireGuard
	batch  = 128 // packets that WireGuard reads at once
)

// Packet is what a filter sees of an IPv6 packet.
type Packet struct {
	Src, Dst netip.Addr
	Proto    uint8  // of the first header after IPv6's own
	DstPort  uint16 // of TCP and UDP, else 0
	Type     uint8  // of ICMPv6, else 0
}

// Numbers of protocols in [Packet].
const (
	TCP    = uint8(header.TCPProtocolNumber)
	UDP    = uint8(header.UDPProtocolNumber)
	ICMPv6 = uint8(header.ICMPv6ProtocolNumber)
)

// Types of ICMPv6 in [Packet].
const (
	EchoRequest = uint8(header.ICMPv6EchoRequest)
	EchoReply   = uint8(header.ICMPv6EchoReply)
)

// parse reads the headers of an IPv6 packet. It is false for other packets and
// for those that are cut short.
func parse(b []byte) (Packet, bool) {
	if len(b) < header.IPv6MinimumSize || b[0]>>4 != 6 {
		return Packet{}, false
	}
	p := Packet{Src: netip.AddrFrom16([16]byte(b[8:24])), Dst: netip.AddrFrom16([16]byte(b[24:40])), Proto: b[6]}
	if p.Proto == TCP || p.Proto == UDP {
		if len(b) < header.IPv6MinimumSize+4 {
			return Packet{}, false
		}
		p.DstPort = binary.BigEndian.Uint16(b[header.IPv6MinimumSize+2:])
	}
	if p.Proto == ICMPv6 {
		if len(b) == header.IPv6MinimumSize {
			return Packet{}, false
		}
		p.Type = b[header.IPv6MinimumSize]
	}
	return p, true
}

// Device is the interface's end for WireGuard, a tun.Device.
type Device struct {
	mtu     int
	accept  func(Packet) bool
	fits    func(netip.Addr) int
	destroy func() // ends the stack
	link    *link
	out     outgoing // what Read has begun to take

	coalescers sync.Pool // for Write, of which there are as many at a time as peers

	events chan tun.Event // WireGuard waits for its end
	once   sync.Once
}

func newDevice(cfg Config) *Device {
	return &Device{
		mtu:        cfg.MTU,
		accept:     cfg.Accept,
		fits:       cfg.Fits,
		link:       &link{mtu: uint32(cfg.MTU), out: make(chan *stack.PacketBuffer, queued), done: make(chan struct{})},
		coalescers: sync.Pool{New: func() any { return &coalescer{} }},
		events:     make(chan tun.Event),
	}
}

// Read gives WireGuard the packets that the stack sends: at least one, and
// those that wait behind it. One goroutine reads at a time.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	for ; n < len(bufs); n++ {
		if d.out.packet == nil {
			p, err := d.link.take(n == 0)
			if p == nil {
				return n, err
			}
			d.out.begin(p, d.fits)
		}
		sizes[n] = d.out.next(bufs[n][offset:])
	}
	return n, nil
}

// Write hands the stack packets that WireGuard received. Those that the filter
// refuses vanish.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	dispatcher := d.link.stack.Load()
	if dispatcher == nil {
		return 0, os.ErrClosed
	}
	c := d.coalescers.Get().(*coalescer)
	defer d.coalescers.Put(c)
	for _, b := range bufs {
		head, ok := parse(b[offset:])
		if ok && (d.accept == nil || d.accept(head)) {
			c.add(b[offset:])
		}
	}
	c.flush(func(p *stack.PacketBuffer) {
		(*dispatcher).DeliverNetworkPacket(header.IPv6ProtocolNumber, p)
	})
	return len(bufs), nil
}

// Inject gives WireGuard a packet of somebody else's as if the stack had sent it,
// and waits while WireGuard is behind. One that is larger than the MTU vanishes.
func (d *Device) Inject(b []byte) {
	if len(b) > d.mtu {
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	select {
	case d.link.out <- p:
	case <-d.link.done:
		p.DecRef()
	}
}

// MTU returns the largest packet in bytes.
func (d *Device) MTU() (int, error) { return d.mtu, nil }

// BatchSize returns how many packets Read gives at most.
func (d *Device) BatchSize() int { return batch }

// Events returns a channel that says nothing and is closed with the device.
func (d *Device) Events() <-chan tun.Event { return d.events }

// Name returns a name for logs.
func (d *Device) Name() (string, error) { return "netstack", nil }

// File returns nil: there is no file behind the device.
func (d *Device) File() *os.File { return nil }

// Close ends the stack and whoever waits in Read.
func (d *Device) Close() error {
	d.once.Do(func() {
		close(d.link.done)
		d.destroy()
		close(d.events)
	})
	return nil
}

// link is the interface's end for the stack, a stack.LinkEndpoint.
type link struct {
	mtu   uint32
	stack atomic.Pointer[stack.NetworkDispatcher] // nil: not attached
	out   chan *stack.PacketBuffer
	done  chan struct{}
}

// WritePackets takes packets from the stack. It waits while WireGuard is
// behind, which slows TCP down without a loss.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range list.AsSlice() {
		p = p.Clone() // the stack keeps the packet that it gave
		select {
		case l.out <- p:
		case <-l.done:
			p.DecRef()
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	return list.Len(), nil
}

// take returns the next packet from the stack. Without one it waits if it is
// told to, and returns nil otherwise.
func (l *link) take(wait bool) (*stack.PacketBuffer, error) {
	select {
	case p := <-l.out:
		return p, nil
	default:
	}
	if !wait {
		return nil, nil
	}
	select {
	case p := <-l.out:
		return p, nil
	case <-l.done:
		return nil, os.ErrClosed
	}
}

// GSOMaxSize is the largest TCP packet in bytes that the stack hands over to be
// made into segments (generic segmentation offload).
func (l *link) GSOMaxSize() uint32 { return math.MaxUint16 }

// SupportedGSO says that this is done here, checksums included.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

func (l *link) Attach(dispatcher stack.NetworkDispatcher) {
	if dispatcher == nil {
		l.stack.Store(nil)
		return
	}
	l.stack.Store(&dispatcher)
}

// Capabilities lets the stack skip the checksums of packets that arrive:
// WireGuard has authenticated them. Those that leave carry theirs, as the
// other end may be a kernel.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (l *link) IsAttached() bool                        { return l.stack.Load() != nil }
func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
