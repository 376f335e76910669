package mesh

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/balanceai/balance/mesh/wire"
)

// A stream is a TLS connection that carries what otherwise goes over UDP, for
// nodes in networks that block UDP: each datagram with its length before it (2
// bytes, big endian). The other end has an address like any UDP peer, made up
// here, so that probes, WireGuard and relaying do not know the difference.
//
// TLS is there to get through such networks. What keeps the content safe and
// tells who sent it is WireGuard and the probes, as over UDP, so the server's
// certificate is a throw-away that says nothing, and the client does not look at
// it. In the place of the server's name, the client sends the tag of its probes
// (see [wire.ProbeTag]): who cannot gets no byte in answer.

const (
	streamQueue     = 256 // datagrams that wait to be written; more are lost
	streamHandshake = 5 * time.Second
	streamIdle      = 90 * time.Second // homes are pinged more often
	streamProof     = 10 * time.Second // time to send an authenticated probe
	maxGuests       = 32               // connections that have not got so far, at a time
	serverName      = ".invalid"       // behind the tag: no such name can exist (RFC 6761)
)

// streamNet is where the made-up addresses are from: a prefix of which nothing
// is ever delivered (RFC 6666).
var streamNet = netip.MustParsePrefix("100::/64")

// streams are a bind's connections.
type streams struct {
	bind  *bind
	log   *slog.Logger
	inbox chan datagram
	done  chan struct{}
	work  sync.WaitGroup

	mu   sync.Mutex
	open map[netip.AddrPort]*stream
	last uint64 // number of the last address made up
}

type datagram struct {
	msg  []byte
	from netip.AddrPort
}

type stream struct {
	net.Conn
	addr   netip.AddrPort // made up
	peer   *peer          // who says to be at the other end
	out    chan []byte
	dialed bool
	once   sync.Once
	done   chan struct{}
}

func newStreams(b *bind, log *slog.Logger) *streams {
	return &streams{
		bind: b, log: log, inbox: make(chan datagram, streamQueue), done: make(chan struct{}), open: map[netip.AddrPort]*stream{},
	}
}

// close ends all streams and waits until they have.
func (s *streams) close() {
	s.mu.Lock()
	close(s.done)
	for _, c := range s.open {
		c.end()
	}
	s.mu.Unlock()
	s.work.Wait()
}

func (c *stream) end() {
	c.once.Do(func() {
		close(c.done)
		_ = c.Close()
	})
}

// start runs a connection whose handshake is done, and returns nil when the
// node is closing.
func (s *streams) start(raw net.Conn, p *peer, dialed bool) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		_ = raw.Close()
		return nil
	default:
	}
	s.last++
	ip := streamNet.Addr().As16()
	binary.BigEndian.PutUint64(ip[8:], s.last)
	c := &stream{
		Conn: raw, addr: netip.AddrPortFrom(netip.AddrFrom16(ip), 1), peer: p, dialed: dialed,
		out: make(chan []byte, streamQueue), done: make(chan struct{}),
	}
	s.open[c.addr] = c
	s.work.Go(func() { s.write(c) })
	s.work.Go(func() {
		s.read(c)
		c.end()
		s.mu.Lock()
		delete(s.open, c.addr)
		s.mu.Unlock()
		p.forgetAddr(c.addr)
	})
	return c
}

func (s *streams) write(c *stream) {
	w := bufio.NewWriterSize(c.Conn, 1<<16)
	for {
		select {
		case <-c.done:
			return
		case msg := <-c.out:
			_, _ = w.Write(msg) // the next Flush tells
		}
		for more := true; more; {
			select {
			case msg := <-c.out:
				_, _ = w.Write(msg)
			default:
				more = false
			}
		}
		_ = c.SetWriteDeadline(time.Now().Add(streamProof))
		if w.Flush() != nil {
			c.end()
			return
		}
	}
}

func (s *streams) read(c *stream) {
	r := bufio.NewReaderSize(c.Conn, 1<<16)
	started, proved := time.Now(), false
	for {
		wait := streamIdle
		if !proved {
			if proved = s.bind.source(s.bind.now(), sourceKey{addr: c.addr}) != nil; !proved {
				wait = streamProof - time.Since(started)
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		msg, err := readDatagram(r)
		if err != nil {
			return
		}
		select {
		case s.inbox <- datagram{msg, c.addr}:
		case <-s.done:
			return
		}
	}
}

// readDatagram reads a length and so many bytes.
func readDatagram(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

// send queues datagrams, each with head in front. What does not fit is lost, as
// on any network.
func (s *streams) send(head []byte, bufs [][]byte, to netip.AddrPort) error {
	s.mu.Lock()
	c := s.open[to]
	s.mu.Unlock()
	if c == nil {
		return net.ErrClosed
	}
	for _, b := range bufs {
		size := len(head) + len(b)
		if size > maxDatagram {
			continue
		}
		msg := make([]byte, 2, 2+size)
		binary.BigEndian.PutUint16(msg, uint16(size))
		msg = append(append(msg, head...), b...)
		select {
		case c.out <- msg:
		default:
		}
	}
	return nil
}

// receive is how WireGuard reads what comes by streams.
func (s *streams) receive() conn.ReceiveFunc {
	var onward onward
	return func(bufs [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
		var d datagram
		select {
		case d = <-s.inbox:
		case <-s.done:
			return 0, net.ErrClosed
		}
		now := s.bind.now()
		n := 0
		for more := true; more; {
			if inner, p := s.bind.take(now, d.msg, d.from, &onward); p != nil {
				sizes[n], endpoints[n] = copy(bufs[n], inner), p
				if n++; n == len(bufs) {
					break
				}
			}
			select {
			case d = <-s.inbox:
			default:
				more = false
			}
		}
		onward.flush(s.bind)
		return n, nil
	}
}

// remote returns the TCP address behind a made-up one.
func (s *streams) remote(addr netip.AddrPort) netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.open[addr]; c != nil {
		if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			a := tcp.AddrPort()
			return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		}
	}
	return netip.AddrPort{}
}

// to returns whether there is a stream that was dialed to a peer.
func (s *streams) to(p *peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		if c.peer == p && c.dialed {
			return true
		}
	}
	return false
}

// any reports whether there is a stream that was dialed.
func (s *streams) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		if c.dialed {
			return true
		}
	}
	return false
}

// hangUp ends the streams that were dialed to peers for which which is true.
func (s *streams) hangUp(which func(*peer) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		if c.dialed && which(c.peer) {
			c.end()
		}
	}
}

// dial connects to a peer at the first of addrs that answers. The peer is then
// asked over the stream.
func (s *streams) dial(ctx context.Context, p *peer, addrs []netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, streamHandshake)
	defer cancel()
	p.derive()
	results := make(chan error, len(addrs))
	conns := make(chan net.Conn)
	for _, a := range addrs {
		s.work.Go(func() {
			c, err := dialTLS(ctx, p, a)
			if err != nil {
				results <- err
				return
			}
			select {
			case conns <- c:
			case <-ctx.Done():
				_ = c.Close()
			}
		})
	}
	var errs []error
	for range addrs {
		select {
		case c := <-conns:
			if started := s.start(c, p, true); started != nil {
				p.stream(started.addr)
				p.wake(s.bind.now())
			}
			return nil
		case err := <-results:
			errs = append(errs, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(errs...)
}

func dialTLS(ctx context.Context, p *peer, at netip.AddrPort) (net.Conn, error) {
	d := tls.Dialer{Config: &tls.Config{
		ServerName:         hex.EncodeToString(p.out.Tag[:]) + serverName,
		InsecureSkipVerify: true, // see above: what is inside proves who sent it
		MinVersion:         tls.VersionTLS13,
	}}
	c, err := d.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", at, err)
	}
	return c, nil
}

// errStranger ends the handshake of who is not expected.
var errStranger = errors.New("not one of the mesh")

// quietConn writes nothing while it is quiet, and says that it did.
type quietConn struct {
	net.Conn
	quiet atomic.Bool
}

func (c *quietConn) Write(b []byte) (int, error) {
	if c.quiet.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// serve accepts streams until the listener or the bind closes, and closes the
// listener.
func (s *streams) serve(l net.Listener) error {
	defer l.Close()
	cert, err := throwAway()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-s.done:
			_ = l.Close()
		case <-ended:
		}
	}()
	places := make(chan struct{}, maxGuests)
	for {
		raw, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			s.log.Warn("accept a TCP connection of the mesh", "error", err)
			time.Sleep(100 * time.Millisecond) // out of files, for example
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			_ = raw.Close()
			continue
		}
		s.work.Go(func() {
			defer func() { <-places }()
			s.welcome(raw, cert)
		})
	}
}

// welcome makes a stream of a connection, if it is one of a peer.
func (s *streams) welcome(raw net.Conn, cert tls.Certificate) {
	quiet := &quietConn{Conn: raw}
	quiet.quiet.Store(true) // until it is known who is there
	var from *peer
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if from = s.named(hello.ServerName); from == nil {
				return nil, errStranger
			}
			quiet.quiet.Store(false)
			return nil, nil
		},
	}
	c := tls.Server(quiet, cfg)
	_ = raw.SetDeadline(time.Now().Add(streamHandshake))
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.done:
			_ = raw.Close()
		case <-stop:
		}
	}()
	if err := c.Handshake(); err != nil {
		_ = raw.Close()
		return
	}
	_ = raw.SetDeadline(time.Time{})
	s.start(c, from, false)
}

// named returns the peer whose tag a server name tells.
func (s *streams) named(name string) *peer {
	text, ok := strings.CutSuffix(name, serverName)
	tag, err := hex.DecodeString(text)
	if !ok || err != nil || len(tag) != len(wire.ProbeTag{}) {
		return nil
	}
	s.bind.mu.RLock()
	defer s.bind.mu.RUnlock()
	return s.bind.byTag[wire.ProbeTag(tag)]
}

// throwAway makes a certificate that says nothing.
func throwAway() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
