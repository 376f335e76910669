// Package netstack is a network interface and a TCP/IP stack inside this
// process: WireGuard reads and writes packets at one end, Go code listens and
// dials at the other. It needs no root and changes nothing on the host.
//
// The stack is gVisor's, with IPv6 alone. It answers echo requests to its own
// addresses, forwards nothing, and drops what its owner's filter refuses
// before it looks at it. TCP connections send without delay, and one whose
// other end has vanished fails after half a minute.
//
// Close releases everything: listeners and connections fail, goroutines end.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A connection whose other end says nothing is probed after keepaliveIdle and
// given up keepaliveCount intervals later, or once data has been unanswered
// for userTimeout: half a minute either way.
const (
	keepaliveIdle     = 15 * time.Second
	keepaliveInterval = 5 * time.Second
	keepaliveCount    = 3
	userTimeout       = 30 * time.Second
)

const (
	nic     = 1
	backlog = 256 // connections that wait to be accepted

	// Bytes that either end of a TCP connection keeps at most. It begins with
	// 1 MiB and grows with the connection's bandwidth and delay.
	maxBuffer = 8 << 20
)

// gVisor writes to stderr, of connections that were aborted and the like.
func init() { log.SetTarget(&log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}}) }

// Config says what an interface is.
type Config struct {
	Addrs []netip.Addr // IPv6
	MTU   int          // bytes
	// Fits returns the size in bytes of the largest packet that goes to an
	// address at no loss. TCP's segments are made as large, whatever MTU is: the
	// other end puts them together again. Nil, and less than MTU, is MTU. It must
	// not block.
	Fits func(netip.Addr) int
	// Accept decides on each packet that arrives. Nil accepts all. It must not
	// block.
	Accept func(Packet) bool
}

// Net is an interface with its stack.
type Net struct {
	stack *stack.Stack
	dev   *Device
}

// New makes an interface that is up.
func New(cfg Config) (*Net, error) {
	n := &Net{
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol6},
			HandleLocal:        true,
		}),
		dev: newDevice(cfg),
	}
	n.dev.destroy = n.stack.Destroy
	if err := n.setUp(cfg.Addrs); err != nil {
		_ = n.dev.Close()
		return nil, err
	}
	return n, nil
}

func (n *Net) setUp(addrs []netip.Addr) error {
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcp.DefaultReceiveBufferSize, Max: maxBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcp.DefaultSendBufferSize, Max: maxBuffer}
	for _, o := range []tcpip.SettableTransportProtocolOption{&moderate, &receive, &send} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set up TCP: %s", err)
		}
	}
	if err := n.stack.CreateNIC(nic, n.dev.link); err != nil {
		return fmt.Errorf("create interface: %s", err)
	}
	for _, a := range addrs {
		addr := tcpip.ProtocolAddress{
			Protocol:          ipv6.ProtocolNumber,
			AddressWithPrefix: tcpip.AddrFrom16(a.As16()).WithPrefix(),
		}
		if err := n.stack.AddProtocolAddress(nic, addr, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add address %s: %s", a, err)
		}
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv6EmptySubnet, NIC: nic}})
	return nil
}

// Device returns the end for WireGuard. Closing it closes the interface.
func (n *Net) Device() *Device { return n.dev }

// Close closes the interface, every listener and every connection.
func (n *Net) Close() error { return n.dev.Close() }

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom16(a.Addr().As16()), Port: a.Port()}
}

// failure makes an error of the kind that package net returns.
func failure(op, network string, addr netip.AddrPort, err tcpip.Error) error {
	e := &net.OpError{Op: op, Net: network, Addr: net.TCPAddrFromAddrPort(addr), Err: errors.New(err.String())}
	if network == "udp" {
		e.Addr = net.UDPAddrFromAddrPort(addr)
	}
	return e
}

// ListenTCP listens on one of the interface's addresses.
func (n *Net) ListenTCP(at netip.AddrPort) (net.Listener, error) {
	l := &listener{at: at}
	ep, err := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, &l.wq)
	if err != nil {
		return nil, failure("listen", "tcp", at, err)
	}
	ep.SocketOptions().SetReuseAddress(true) // connections of an earlier listener hold its port until they are forgotten
	if err := ep.Bind(full(at)); err != nil {
		ep.Close()
		return nil, failure("listen", "tcp", at, err)
	}
	if err := ep.Listen(backlog); err != nil {
		ep.Close()
		return nil, failure("listen", "tcp", at, err)
	}
	l.ep = ep
	return l, nil
}

// listener is a net.Listener that tunes the connections it accepts.
type listener struct {
	ep     tcpip.Endpoint
	wq     waiter.Queue
	at     netip.AddrPort
	closed atomic.Bool
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

func (l *listener) Close() error {
	l.closed.Store(true)
	l.ep.Close()
	return nil
}

func (l *listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		ep, wq, err := l.ep.Accept(nil)
		if err == nil {
			tune(ep)
			return gonet.NewTCPConn(wq, ep), nil
		}
		if _, wait := err.(*tcpip.ErrWouldBlock); !wait {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
		}
		<-ready
	}
}

// tune sets the options that gVisor keeps per connection.
func tune(ep tcpip.Endpoint) {
	idle, interval, user := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval), tcpip.TCPUserTimeoutOption(userTimeout)
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOpt(&user)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
}

// DialTCP connects one of the interface's addresses with another.
func (n *Net) DialTCP(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var wq waiter.Queue
	ep, err := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, &wq)
	if err != nil {
		return nil, failure("dial", "tcp", to, err)
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	tune(ep)
	if err := ep.Bind(full(netip.AddrPortFrom(from, 0))); err != nil {
		ep.Close()
		return nil, failure("dial", "tcp", to, err)
	}
	if err = ep.Connect(full(to)); err != nil {
		if _, started := err.(*tcpip.ErrConnectStarted); !started {
			ep.Close()
			return nil, failure("dial", "tcp", to, err)
		}
	}
	select {
	case <-ctx.Done():
		ep.Close()
		return nil, ctx.Err()
	case <-connected:
	}
	if err := ep.LastError(); err != nil {
		ep.Close()
		return nil, failure("dial", "tcp", to, err)
	}
	return gonet.NewTCPConn(&wq, ep), nil
}

// Owns reports whether a socket of the interface is there for packets from
// remote to local: a connection, a listener or a packet socket.
func (n *Net) Owns(proto uint8, local, remote netip.AddrPort) bool {
	id := stack.TransportEndpointID{
		LocalPort: local.Port(), LocalAddress: full(local).Addr,
		RemotePort: remote.Port(), RemoteAddress: full(remote).Addr,
	}
	return n.stack.FindTransportEndpoint(ipv6.ProtocolNumber, tcpip.TransportProtocolNumber(proto), id, nic) != nil
}

// Abort makes every established connection with an address fail: whoever has
// the address now knows nothing of them.
func (n *Net) Abort(with netip.Addr) {
	addr := tcpip.AddrFrom16(with.As16())
	for _, e := range n.stack.RegisteredEndpoints() {
		ep, ok := e.(*tcp.Endpoint)
		if !ok || ep.EndpointState() == tcp.StateSynSent || ep.EndpointState() == tcp.StateListen {
			continue
		}
		if remote, err := ep.GetRemoteAddress(); err == nil && remote.Addr == addr {
			ep.Abort()
		}
	}
}

// ListenUDP opens a packet socket on one of the interface's addresses.
func (n *Net) ListenUDP(at netip.AddrPort) (net.PacketConn, error) {
	var wq waiter.Queue
	ep, err := n.stack.NewEndpoint(udp.ProtocolNumber, ipv6.ProtocolNumber, &wq)
	if err != nil {
		return nil, failure("listen", "udp", at, err)
	}
	if err := ep.Bind(full(at)); err != nil {
		ep.Close()
		return nil, failure("listen", "udp", at, err)
	}
	return gonet.NewUDPConn(&wq, ep), nil
}
