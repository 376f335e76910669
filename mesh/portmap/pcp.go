package portmap

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// PCP and NAT-PMP share a port and the form of their header, so that a router
// that speaks the older one alone answers the newer one with its own version.

const (
	pcpPort = 5351

	natpmpVersion, pcpVersion = 0, 2

	opExternal = 0 // NAT-PMP: which is the external address
	opMap      = 1 // both: forward a UDP port
	opAnswer   = 0x80

	protocolUDP = 17
	pcpMapLen   = 60 // RFC 6887 sections 7.1 and 11.1
	maxPCP      = 1100
)

// Waits for an answer: 250 ms, doubled three times.
const (
	pcpFirst = 250 * time.Millisecond
	pcpTries = 3
)

// askPCP asks by PCP, and by NAT-PMP where the router does not speak that. A
// renewal asks for the port that there was before.
func askPCP(ctx context.Context, router netip.AddrPort, port uint16, before *lease) (*lease, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp4", router.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	want := mapRequest{port: port, external: port, life: lifetime}
	want.nonce = newNonce()
	if before != nil && before.Protocol != UPnP {
		want.external, want.nonce = before.External.Port(), before.nonce
	}
	want.client = addrPort(c.LocalAddr()).Addr()
	answer, err := exchange(ctx, c, want.pcp(), func(b []byte) (mapAnswer, bool) { return parsePCP(b, want) })
	if err != nil {
		return nil, err
	}
	protocol, encode := PCP, mapRequest.pcp
	if answer.version == natpmpVersion {
		external, err := exchange(ctx, c, []byte{natpmpVersion, opExternal}, parseExternal)
		if err != nil {
			return nil, err
		}
		answer, err = exchange(ctx, c, want.natpmp(), func(b []byte) (mapAnswer, bool) { return parseNATPMP(b, port) })
		if err != nil {
			return nil, err
		}
		answer.addr = external.addr
		protocol, encode = NATPMP, mapRequest.natpmp
	}
	if answer.result != 0 {
		return nil, fmt.Errorf("%w: %s result %d", errNone, protocol, answer.result)
	}
	return &lease{
		Mapping: Mapping{protocol, netip.AddrPortFrom(answer.addr, answer.port)}, life: answer.life, nonce: want.nonce,
		release: func(ctx context.Context) {
			want.life, want.external = 0, 0
			tell(ctx, router, encode(want))
		},
	}, nil
}

// newNonce marks a mapping as ours: only who knows it may end it.
func newNonce() (n [12]byte) {
	_, _ = rand.Read(n[:]) // never fails
	return n
}

func addrPort(a net.Addr) netip.AddrPort {
	at := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// exchange sends a request until there is an answer that parse knows.
func exchange[T any](ctx context.Context, c net.Conn, request []byte, parse func([]byte) (T, bool)) (answer T, err error) {
	buf := make([]byte, maxPCP)
	for wait := pcpFirst; wait < pcpFirst<<pcpTries; wait *= 2 {
		if _, err = c.Write(request); err != nil {
			return answer, err
		}
		if err = c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return answer, err
		}
		for {
			var n int
			if n, err = c.Read(buf); err != nil {
				break
			}
			if answer, ok := parse(buf[:n]); ok {
				return answer, nil
			}
		}
		if ctx.Err() != nil {
			return answer, ctx.Err()
		}
	}
	return answer, fmt.Errorf("%w: %w", errNone, err)
}

// tell sends a request whose answer changes nothing.
func tell(ctx context.Context, router netip.AddrPort, request []byte) {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp4", router.String())
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write(request) // a mapping that stays ends by itself
}

// mapRequest asks for a port.
type mapRequest struct {
	client         netip.Addr
	port, external uint16 // wished for
	life           time.Duration
	nonce          [12]byte
}

// mapAnswer is what came back.
type mapAnswer struct {
	version byte
	result  uint16
	addr    netip.Addr
	port    uint16
	life    time.Duration
}

// pcp returns the request in PCP: header, MAP.
func (r mapRequest) pcp() []byte {
	b := make([]byte, 0, pcpMapLen)
	b = append(b, pcpVersion, opMap, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(r.life/time.Second))
	client := r.client.As16()
	b = append(b, client[:]...)
	b = append(b, r.nonce[:]...)
	b = append(b, protocolUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, r.port)
	b = binary.BigEndian.AppendUint16(b, r.external)
	any4 := netip.IPv4Unspecified().As16()
	return append(b, any4[:]...)
}

// natpmp returns the request in NAT-PMP, RFC 6886 section 3.3.
func (r mapRequest) natpmp() []byte {
	b := []byte{natpmpVersion, opMap, 0, 0}
	b = binary.BigEndian.AppendUint16(b, r.port)
	b = binary.BigEndian.AppendUint16(b, r.external)
	return binary.BigEndian.AppendUint32(b, uint32(r.life/time.Second))
}

// parsePCP reads the answer to a request. That of a router of another version
// has that version and nothing else.
func parsePCP(b []byte, to mapRequest) (a mapAnswer, ok bool) {
	if len(b) >= 4 && b[0] == natpmpVersion && b[1]&opAnswer != 0 {
		return mapAnswer{version: natpmpVersion}, true
	}
	if len(b) < 24 || b[0] != pcpVersion || b[1] != opMap|opAnswer {
		return a, false
	}
	a = mapAnswer{version: pcpVersion, result: uint16(b[3]), life: seconds(b[4:])}
	if a.result != 0 {
		return a, true
	}
	if len(b) < pcpMapLen || [12]byte(b[24:36]) != to.nonce || b[36] != protocolUDP || binary.BigEndian.Uint16(b[40:]) != to.port {
		return a, false
	}
	a.port, a.addr = binary.BigEndian.Uint16(b[42:]), netip.AddrFrom16([16]byte(b[44:60])).Unmap()
	return a, true
}

// parseExternal reads the answer to a question for the external address.
func parseExternal(b []byte) (a mapAnswer, ok bool) {
	if len(b) < 12 || b[0] != natpmpVersion || b[1] != opExternal|opAnswer {
		return a, false
	}
	return mapAnswer{result: binary.BigEndian.Uint16(b[2:]), addr: netip.AddrFrom4([4]byte(b[8:12]))}, true
}

// parseNATPMP reads the answer to a request for a port.
func parseNATPMP(b []byte, port uint16) (a mapAnswer, ok bool) {
	if len(b) < 4 || b[0] != natpmpVersion || b[1] != opMap|opAnswer {
		return a, false
	}
	a.result = binary.BigEndian.Uint16(b[2:])
	if a.result != 0 {
		return a, true
	}
	if len(b) < 16 || binary.BigEndian.Uint16(b[8:]) != port {
		return a, false
	}
	a.port, a.life = binary.BigEndian.Uint16(b[10:]), seconds(b[12:])
	return a, true
}

func seconds(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Second
}
