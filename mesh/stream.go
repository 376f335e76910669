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
	streamQueue     = 512 << 10 // bytes that wait to be written; more are lost
	streamPieces    = 8         // that were read and wait for WireGuard, of 64 KiB
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
	inbox chan piece
	spare sync.Pool // *[]byte, of the inbox
	done  chan struct{}
	work  sync.WaitGroup

	mu   sync.Mutex
	open map[netip.AddrPort]*stream
	last uint64 // number of the last address made up
}

// piece is some datagrams of one stream, each with its length.
type piece struct {
	buf  *[]byte // of spare
	from netip.AddrPort
}

type stream struct {
	net.Conn
	addr   netip.AddrPort // made up
	peer   *peer          // who says to be at the other end
	dialed bool
	once   sync.Once
	done   chan struct{}
	more   chan struct{} // has something in it when out has

	mu  sync.Mutex
	out []byte // datagrams that wait to be written, each with its length
}

func newStreams(b *bind, log *slog.Logger) *streams {
	return &streams{
		bind: b, log: log, inbox: make(chan piece, streamPieces), done: make(chan struct{}), open: map[netip.AddrPort]*stream{},
		spare: sync.Pool{New: func() any { return new([]byte) }},
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
		done: make(chan struct{}), more: make(chan struct{}, 1),
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
	var buf []byte
	for {
		select {
		case <-c.done:
			return
		case <-c.more:
		}
		c.mu.Lock()
		buf, c.out = c.out, buf[:0]
		c.mu.Unlock()
		_ = c.SetWriteDeadline(time.Now().Add(streamProof))
		if _, err := c.Write(buf); err != nil {
			c.end()
			return
		}
	}
}

func (s *streams) read(c *stream) {
	r := bufio.NewReaderSize(c.Conn, 2+1<<16)
	started, proved := time.Now(), false
	for {
		wait := streamIdle
		if !proved {
			if proved = s.bind.source(s.bind.now(), sourceKey{addr: c.addr}) != nil; !proved {
				wait = streamProof - time.Since(started)
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		buf := s.spare.Get().(*[]byte)
		var err error
		if *buf, err = readDatagrams((*buf)[:0], r); err != nil {
			return
		}
		select {
		case s.inbox <- piece{buf, c.addr}:
		case <-s.done:
			return
		}
	}
}

// readDatagrams waits for a datagram and appends it to buf, with those that
// have come behind it. Each keeps its length. The buffer of r must be able to
// hold the longest.
func readDatagrams(buf []byte, r *bufio.Reader) ([]byte, error) {
	size, err := r.Peek(2)
	if err != nil {
		return buf, err
	}
	if _, err = r.Peek(2 + int(binary.BigEndian.Uint16(size))); err != nil {
		return buf, err
	}
	all, _ := r.Peek(r.Buffered())
	rest := all
	for ok := true; ok; {
		_, rest, ok = cutDatagram(rest)
	}
	whole := all[:len(all)-len(rest)]
	buf = append(buf, whole...)
	_, err = r.Discard(len(whole))
	return buf, err
}

// cutDatagram cuts a datagram that has a length before it off b. Where there is
// no whole one, rest is b.
func cutDatagram(b []byte) (msg, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, b, false
	}
	end := 2 + int(binary.BigEndian.Uint16(b))
	if len(b) < end {
		return nil, b, false
	}
	return b[2:end], b[end:], true
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
	c.mu.Lock()
	for _, b := range bufs {
		size := len(head) + len(b)
		if size > maxDatagram || len(c.out)+2+size > streamQueue {
			continue
		}
		c.out = binary.BigEndian.AppendUint16(c.out, uint16(size))
		c.out = append(append(c.out, head...), b...)
	}
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
	return nil
}

// receive is how WireGuard reads what comes by streams.
func (s *streams) receive() conn.ReceiveFunc {
	var in intake
	var p piece
	var rest []byte // of p
	return func(bufs [][]byte, sizes []int, endpoints []conn.Endpoint) (n int, err error) {
		if len(rest) == 0 {
			select {
			case p = <-s.inbox:
				rest = *p.buf
			case <-s.done:
				return 0, net.ErrClosed
			}
		}
		now := s.bind.now()
		for n < len(bufs) {
			msg, after, ok := cutDatagram(rest)
			if !ok {
				break
			}
			rest = after
			if inner, from := s.bind.take(now, msg, p.from, &in); from != nil {
				sizes[n], endpoints[n] = copy(bufs[n], inner), from
				n++
			}
		}
		in.flush(s.bind, now)
		if len(rest) == 0 {
			s.spare.Put(p.buf)
		}
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
				p.take(rumour, []hop{direct(started.addr)})
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
