// Package egress is the only way out of a sandbox: an HTTP proxy that reaches the
// hosts that a run was granted, and nothing else.
//
// The run speaks HTTP to it, or asks with CONNECT for a connection on which it
// does TLS itself; names are looked up here, so that no question of the run
// reaches a name server. A host is granted by its name ([Allow]). Whether its
// address may be dialled is a question of its own, asked of the very address that
// is dialled: a name that turns out to be in the machine's own network, in the
// mesh or on the machine itself is refused, whatever answered for it before.
package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Any is the pattern of every host.
const Any = "*"

// Pattern is a host that may be reached: example.org, example.org:8443,
// *.example.org for every name below it, or * for all. Without a port it is for
// 80 and 443.
type Pattern struct {
	host  string // lower case, ASCII; empty for all
	below bool   // names below host alone
	port  uint16 // 0 for the usual ones
}

// usual are the ports of hosts that are given without one.
var usual = []uint16{80, 443}

// ParsePattern reads a pattern.
func ParsePattern(s string) (Pattern, error) {
	bad := func() (Pattern, error) {
		return Pattern{}, fmt.Errorf("%.80q is no host: write it like example.org, example.org:8443 or *.example.org", s)
	}
	var p Pattern
	name := s
	if host, port, ok := cutPort(s); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return bad()
		}
		name, p.port = host, uint16(n)
	}
	if name == Any {
		return p, nil
	}
	if rest, ok := strings.CutPrefix(name, "*."); ok {
		name, p.below = rest, true
		if !strings.Contains(rest, ".") { // all of a top-level domain is nobody's
			return bad()
		}
	}
	host, err := canonical(name)
	if err != nil || p.below && isAddr(host) {
		return bad()
	}
	p.host = host
	return p, nil
}

// cutPort divides host:port, of which the host may be an IPv6 address in
// brackets, or without them where there is no port.
func cutPort(s string) (host, port string, ok bool) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, "", false
	}
	if !strings.Contains(s, ":") {
		return s, "", false
	}
	host, port, err := net.SplitHostPort(s)
	return host, port, err == nil
}

// canonical returns the one form of a host's name that is compared: look-alikes
// of other scripts are other names then.
func canonical(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	if addr, err := netip.ParseAddr(name); err == nil {
		if addr.Zone() != "" {
			return "", errors.New("an address of one link")
		}
		return addr.Unmap().String(), nil
	}
	ascii, err := idna.Lookup.ToASCII(name)
	if err != nil || ascii == "" || strings.ContainsAny(ascii, "*/@ ") {
		return "", fmt.Errorf("%.80q is no name of a host", name)
	}
	if last := ascii[strings.LastIndexByte(ascii, '.')+1:]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return "", fmt.Errorf("%.80q is no address", name) // 127.1 and its like, which resolvers read each in their way
	}
	return ascii, nil
}

func isAddr(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

func (p Pattern) matches(host string, port uint16) bool {
	if p.port == 0 && !slices.Contains(usual, port) || p.port != 0 && p.port != port {
		return false
	}
	switch {
	case p.host == "":
		return true
	case p.below:
		return strings.HasSuffix(host, "."+p.host)
	}
	return host == p.host
}

// Allow is a list of patterns: what any of them matches is granted.
type Allow []Pattern

// ParseAllow reads patterns.
func ParseAllow(list []string) (Allow, error) {
	var out Allow
	for _, s := range list {
		p, err := ParsePattern(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// Grants reports whether a host, in canonical form, may be reached.
func (a Allow) grants(host string, port uint16) bool {
	return slices.ContainsFunc(a, func(p Pattern) bool { return p.matches(host, port) })
}

// special are addresses that are not on the public internet, besides those that
// package netip knows: see the IANA registries of special-purpose addresses.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("fec0::/10"),
}

// Public reports whether an address is on the public internet: not this machine,
// its network, the mesh, or a way to one of them in another form.
func Public(addr netip.Addr) bool {
	addr = addr.Unmap()
	return addr.IsValid() && addr.Zone() == "" && addr.IsGlobalUnicast() && !addr.IsPrivate() &&
		!slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(addr) })
}
