package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
)

const (
	maxUDP      = 1232 // bytes: fits a packet of 1280, the least that IPv6 carries
	maxQuery    = 4096 // bytes; a query has one name
	maxConns    = 64   // of TCP at one time; others wait
	connTimeout = 5 * time.Second
	acceptPause = 100 * time.Millisecond
)

// Serve answers DNS on a packet socket and a listener until ctx is done, which
// is no error, or one of them fails. It closes both. It calls names for each
// message: the answer is the mesh at that moment.
func Serve(ctx context.Context, names func() *Names, pc net.PacketConn, ln net.Listener, log *slog.Logger) error {
	group, serving := errgroup.WithContext(ctx)
	ln = netutil.LimitListener(ln, maxConns)
	group.Go(func() error { return servePackets(names, pc) })
	group.Go(func() error { return serveConns(serving, names, ln, log) })
	group.Go(func() error {
		<-serving.Done()
		pc.Close()
		ln.Close()
		return nil
	})
	if err := group.Wait(); ctx.Err() == nil {
		return fmt.Errorf("serve dns: %w", err)
	}
	return nil
}

func servePackets(names func() *Names, pc net.PacketConn) error {
	buf := make([]byte, maxQuery)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return err
		}
		if reply := names().reply(buf[:n], false); reply != nil {
			_, _ = pc.WriteTo(reply, from) // who got no reply asks again
		}
	}
}

// serveConns ends when the listener is closed. Other failures to take a
// connection pass, as for want of file descriptors.
func serveConns(ctx context.Context, names func() *Names, ln net.Listener, log *slog.Logger) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) || err != nil && ctx.Err() != nil {
			return err
		}
		if err != nil {
			log.Warn("accept a DNS connection", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		conns.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			serveConn(names, c)
		})
	}
}

// serveConn answers until the client has nothing more to ask or takes too long
// for one query.
func serveConn(names func() *Names, c net.Conn) {
	framed := dns.Conn{Conn: c} // adds and takes away the length before each message
	buf := make([]byte, maxQuery)
	for c.SetDeadline(time.Now().Add(connTimeout)) == nil {
		n, err := framed.Read(buf)
		if err != nil {
			return
		}
		reply := names().reply(buf[:n], true)
		if reply == nil {
			return
		}
		if _, err := framed.Write(reply); err != nil {
			return
		}
	}
}

// reply answers one message, or returns nil if it is not a query. Names are
// matched without regard to case, and the question goes back as it was
// written, which resolvers use against forged answers.
func (n *Names) reply(message []byte, tcp bool) []byte {
	var q, r dns.Msg
	err := q.Unpack(message)
	if len(message) < headerLen || q.Response {
		return nil
	}
	r.SetReply(&q)
	opt := q.IsEdns0()
	switch {
	case err != nil || len(q.Question) != 1:
		r.Rcode, r.Question = dns.RcodeFormatError, nil
	case q.Opcode != dns.OpcodeQuery:
		r.Rcode = dns.RcodeNotImplemented
	case opt != nil && opt.Version() != 0:
		r.Rcode = dns.RcodeBadVers
	default:
		r.Question[0].Name = dns.CanonicalName(r.Question[0].Name)
		n.answer(&r)
	}
	limit := dns.MaxMsgSize
	if !tcp {
		limit = dns.MinMsgSize
		if opt != nil {
			limit = min(max(limit, int(opt.UDPSize())), maxUDP)
		}
	}
	fit(&r, opt, limit)
	b, err := r.Pack()
	if err != nil {
		return nil
	}
	if len(r.Question) > 0 {
		_, _ = dns.PackDomainName(q.Question[0].Name, b, headerLen, nil, false)
	}
	return b
}

// fit makes a reply at most limit bytes long. What was not asked for goes
// first; if that is not enough, the reply says that it is cut.
func fit(r *dns.Msg, opt *dns.OPT, limit int) {
	const least = 12 // bytes of a record
	if most := limit / least; len(r.Answer) > most {
		r.Answer, r.Truncated = r.Answer[:most], true
	}
	extra := r.Extra
	if opt != nil {
		r.SetEdns0(maxUDP, opt.Do())
	}
	r.Compress = true
	if len(extra) > 0 && r.Len() > limit {
		r.Extra = r.Extra[len(extra):]
	}
	r.Truncate(limit)
	r.Compress = true
}
