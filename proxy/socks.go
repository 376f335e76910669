package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// SOCKS5, RFC 1928, without authentication and with CONNECT alone: the listener
// decides who may use it.
const (
	socksVersion = 5
	noAuth       = 0x00
	noMethod     = 0xFF
	cmdConnect   = 1
	addrIPv4     = 1
	addrName     = 3
	addrIPv6     = 4
)

// Replies: section 6.
const (
	repDone         = 0
	repForbidden    = 2
	repHost         = 4
	repRefused      = 5
	repNoCommand    = 7
	repNoAddrFormat = 8
)

// socksError is a request that is answered with a code and not carried out.
type socksError byte

func (e socksError) Error() string { return fmt.Sprintf("SOCKS request refused with code %d", byte(e)) }

// socks serves one connection.
func (p *Proxy) socks(ctx context.Context, c net.Conn) error {
	if err := greet(c); err != nil {
		return err
	}
	host, port, err := readRequest(c)
	if code, ok := errors.AsType[socksError](err); ok {
		return errors.Join(err, reply(c, byte(code)))
	}
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	to, err := p.dial(ctx, host, port)
	if err != nil {
		return errors.Join(err, reply(c, socksCode(err)))
	}
	if err := reply(c, repDone); err != nil {
		to.Close()
		return err
	}
	Carry(ctx, c, to)
	return nil
}

// greet agrees on no authentication: section 3.
func greet(c io.ReadWriter) error {
	head := make([]byte, 2)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(c, methods); err != nil {
		return err
	}
	if !bytes.Contains(methods, []byte{noAuth}) {
		_, err := c.Write([]byte{socksVersion, noMethod})
		return errors.Join(errors.New("a SOCKS client insists on authentication"), err)
	}
	_, err := c.Write([]byte{socksVersion, noAuth})
	return err
}

// readRequest reads where a program wants to go: section 4.
func readRequest(in io.Reader) (host string, port uint16, err error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(in, head); err != nil {
		return "", 0, err
	}
	if head[0] != socksVersion {
		return "", 0, fmt.Errorf("a SOCKS request of version %d", head[0])
	}
	size := 0
	switch head[3] {
	case addrIPv4:
		size = net.IPv4len
	case addrIPv6:
		size = net.IPv6len
	case addrName:
		var n [1]byte
		if _, err := io.ReadFull(in, n[:]); err != nil {
			return "", 0, err
		}
		size = int(n[0])
	default:
		return "", 0, socksError(repNoAddrFormat)
	}
	rest := make([]byte, size+2)
	if _, err := io.ReadFull(in, rest); err != nil {
		return "", 0, err
	}
	if head[1] != cmdConnect {
		return "", 0, socksError(repNoCommand)
	}
	host = string(rest[:size])
	if head[3] != addrName {
		addr, _ := netip.AddrFromSlice(rest[:size])
		host = addr.String()
	}
	return host, binary.BigEndian.Uint16(rest[size:]), nil
}

// reply answers a request. The address that the connection has at the far side
// is left out: section 6 has it, and no client uses it.
func reply(out io.Writer, code byte) error {
	_, err := out.Write([]byte{socksVersion, code, 0, addrIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

func socksCode(err error) byte {
	switch {
	case errors.Is(err, ErrForbidden):
		return repForbidden
	case errors.Is(err, ErrNoHost), errors.Is(err, ErrNoAnswer):
		return repHost
	}
	return repRefused
}
