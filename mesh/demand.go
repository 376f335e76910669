package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// A peer leaves WireGuard when nothing was sent to it for so long. Whatever
	// comes from a peer is acknowledged within ten seconds, so that neither end
	// has a session then that the other one could still use.
	restAfter = sourceLife

	keysAtOnce = 128 // peers whose keys are derived while the caller waits: some milliseconds
)

// demand is the network's end for WireGuard. It has WireGuard know the peers
// that packets go to, just before it gets the packets.
type demand struct {
	tun.Device
	t  *tunnel
	to *peer // whom the last packet went to; nil: nobody
}

// Read reads packets. One goroutine reads at a time.
func (d *demand) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.Device.Read(bufs, sizes, offset)
	if err != nil && !errors.Is(err, tun.ErrTooManySegments) {
		d.t.end() // WireGuard ends now
		return n, err
	}
	now := d.t.bind.now()
	var last netip.Addr
	for i, size := range sizes[:n] {
		packet := bufs[i][offset : offset+size]
		if size < 40 || packet[0]>>4 != 6 { // not IPv6
			continue
		}
		dst := netip.AddrFrom16([16]byte(packet[24:40]))
		if dst == last {
			continue
		}
		last = dst
		if d.to == nil || d.to.addr != dst || !d.to.engaged.Load() {
			d.to = d.t.toward(dst)
		}
		if d.to != nil {
			d.t.engage(now, d.to)
		}
	}
	return n, err
}

// toward returns the peer that packets to an address go to: the one that has it,
// or that carries the guest that has it. Nil is nobody.
func (t *tunnel) toward(addr netip.Addr) *peer {
	if p := t.bind.at(addr); p != nil || t.behind == nil {
		return p
	}
	return t.behind(addr)
}

// engage has WireGuard know a peer that a message is for or comes from.
func (t *tunnel) engage(now instant, p *peer) {
	p.sent.Store(int64(now)) // first, so that rest sees this or we see what rest did
	if p.engaged.Load() {
		return
	}
	t.engaging.Lock()
	defer t.engaging.Unlock()
	if !p.engaged.Load() && t.bind.has(p) {
		p.engaged.Store(t.set(describe(p)))
	}
}

// rest takes the peers out of WireGuard that were not in use for long.
func (t *tunnel) rest(now instant) {
	t.configure.Lock()
	defer t.configure.Unlock()
	idle := func(p *peer) bool { return !instant(p.sent.Load()).within(restAfter, now) }
	for _, p := range t.bind.peers(func(p *peer) bool { return p.engaged.Load() && idle(p) }) {
		t.engaging.Lock()
		p.engaged.Store(false)
		if idle(p) {
			t.dismiss(p)
		} else {
			p.engaged.Store(true)
		}
		t.engaging.Unlock()
	}
}

// halt ends the sessions with a peer that may be in use. It waits until the
// network has taken what came from the peer, and the network may wait until
// WireGuard has read what it sends: so engaging, which the reader may need, must
// not be held. The caller holds configure.
func (t *tunnel) halt(p *peer) {
	if wg := t.dev.LookupPeer(device.NoisePublicKey(p.key)); wg != nil {
		wg.Stop()
	}
}

// dismiss takes a peer out of WireGuard that is halted or idle. The caller holds
// engaging.
func (t *tunnel) dismiss(p *peer) {
	p.engaged.Store(false)
	t.dev.RemovePeer(device.NoisePublicKey(p.key))
}

// describe returns a peer in WireGuard's configuration protocol,
// https://www.wireguard.com/xplatform/#configuration-protocol. The caller holds
// engaging.
func describe(p *peer) string {
	var w strings.Builder
	fmt.Fprintf(&w, "public_key=%s\n", p.key.Hex())
	if p.psk != [32]byte{} {
		fmt.Fprintf(&w, "preshared_key=%x\n", p.psk)
	}
	fmt.Fprintf(&w, "endpoint=%s\n", p.key.Hex())
	describeAllowed(&w, p)
	return w.String()
}

func describeAllowed(w *strings.Builder, p *peer) {
	for _, a := range append([]netip.Addr{p.addr}, p.guests...) {
		fmt.Fprintf(w, "allowed_ip=%s/128\n", a)
	}
}

// allow says which guests a peer carries.
func (t *tunnel) allow(p *peer, guests []netip.Addr) {
	t.engaging.Lock()
	defer t.engaging.Unlock()
	p.guests = guests
	if p.engaged.Load() {
		var conf strings.Builder
		fmt.Fprintf(&conf, "public_key=%s\nupdate_only=true\nreplace_allowed_ips=true\n", p.key.Hex())
		describeAllowed(&conf, p)
		t.set(conf.String())
	}
}

// set configures WireGuard, unless the tunnel is closed, and reports whether it
// did. The caller holds engaging.
func (t *tunnel) set(conf string) bool {
	if t.isClosing() {
		return false
	}
	if err := t.dev.IpcSet(conf); err != nil { // its lines were made here
		t.log.Error("configure WireGuard", "error", err)
		return false
	}
	return true
}

// derive derives the keys of peers, by which their probes are known: of the
// first ones now, of the others in the background, as 10,000 of them take half
// a second. Who is called before its turn gets them then.
func (t *tunnel) derive(list []*peer) {
	now := list[:min(len(list), keysAtOnce)]
	for _, p := range now {
		p.derive()
	}
	later := list[len(now):]
	if len(later) == 0 {
		return
	}
	t.engaging.Lock()
	defer t.engaging.Unlock()
	if t.isClosing() {
		return
	}
	t.watch.Go(func() {
		t.deriving.Lock()
		defer t.deriving.Unlock()
		for _, p := range later {
			if t.isClosing() {
				return
			}
			p.derive()
		}
		t.bind.memory.saw(len(later)) // each leaves as much garbage as a packet
	})
}
