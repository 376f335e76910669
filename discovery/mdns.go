package discovery

import (
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// rescanEvery is how long a change of the host's addresses may go unnoticed.
const rescanEvery = 15 * time.Second

// Config is what [Start] needs. The functions are called by several goroutines.
type Config struct {
	Key     [32]byte             // known to members alone
	Self    identity.ID          // who announces
	Port    uint16               // the UDP port of WireGuard
	Members func() []identity.ID // who is recognised; may contain Self

	// Found is told where a member may be, by a neighbour that nobody vouches
	// for. An address of a member is told at most once a minute, whether it was
	// of use or not. Found must not block, nor call [LAN.Close].
	Found func(id identity.ID, addrs []netip.AddrPort)

	Log *slog.Logger

	Interfaces func() ([]net.Interface, error) // where to announce; nil for those that look like a local network
	Now        func() time.Time                // the wall clock; nil for time.Now
}

// LAN announces a node on the local network and listens for others.
type LAN struct {
	cfg  Config
	book *book
	kick chan struct{}
	stop func()
	done chan struct{}

	mu    sync.Mutex
	names []string // of the interfaces on which it is announced
}

// Hearing is what multicast has brought.
type Hearing struct {
	Interfaces []string                  // on which the node is announced
	Own        time.Time                 // when one of its own announcements came back; zero: never
	Members    map[identity.ID]time.Time // when one of a member came
}

// Hearing reports what multicast has brought since the start.
func (l *LAN) Hearing() Hearing {
	l.mu.Lock()
	h := Hearing{Interfaces: slices.Clone(l.names)}
	l.mu.Unlock()
	l.book.mu.Lock()
	defer l.book.mu.Unlock()
	h.Own, h.Members = l.book.own, maps.Clone(l.book.heard)
	return h
}

// linkKey names a link for as long as the interface is the same one.
type linkKey struct {
	name  string
	index int
	v6    bool
}

// Start announces the node and listens, until [LAN.Close]. Interfaces that
// come, go or change their addresses are noticed within 15 seconds. One on
// which it is not possible is logged and tried again.
func Start(cfg Config) *LAN {
	if cfg.Interfaces == nil {
		cfg.Interfaces = lanInterfaces
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	stopped := make(chan struct{})
	l := &LAN{
		cfg:  cfg,
		book: newBook(&cfg),
		kick: make(chan struct{}, 1),
		stop: sync.OnceFunc(func() { close(stopped) }),
		done: make(chan struct{}),
	}
	go l.run(stopped)
	return l
}

// Close says goodbye and waits until everything has ended.
func (l *LAN) Close() {
	l.stop()
	<-l.done
}

// Kick announces and asks again at once: after a change of the network or of
// the members, or after sleep.
func (l *LAN) Kick() {
	select {
	case l.kick <- struct{}{}:
	default: // there is one that was not taken yet
	}
}

func (l *LAN) run(stopped <-chan struct{}) {
	defer close(l.done)
	links := map[linkKey]*link{}
	failed := map[linkKey]bool{}
	ticker := time.NewTicker(rescanEvery)
	defer ticker.Stop()
	for {
		l.rescan(links, failed)
		select {
		case <-stopped:
			for _, ln := range links {
				ln.close()
			}
			return
		case <-l.kick:
			l.book.forget()
			for _, ln := range links {
				ln.tell(func(o *order) { o.restart = true })
			}
		case <-ticker.C:
		}
	}
}

// rescan makes the links those that the host's interfaces allow now.
func (l *LAN) rescan(links map[linkKey]*link, failed map[linkKey]bool) {
	ifis, err := l.cfg.Interfaces()
	if err != nil {
		l.cfg.Log.Warn("list network interfaces", "error", err)
		return
	}
	want := map[linkKey][]netip.Prefix{}
	for _, ifi := range ifis {
		here := prefixes(ifi)
		for _, v6 := range []bool{false, true} {
			key := linkKey{ifi.Name, ifi.Index, v6}
			if !hasFamily(here, v6) {
				continue
			}
			want[key] = here
			if ln := links[key]; ln != nil && !ln.ended() {
				ln.tell(func(o *order) { o.here = here })
				continue
			}
			delete(links, key)
			ln, err := openLink(&l.cfg, l.book, ifi, v6, here)
			if err != nil {
				if !failed[key] {
					l.cfg.Log.Warn("no multicast DNS on this interface", "interface", ifi.Name, "error", err)
				}
				failed[key] = true
				continue
			}
			delete(failed, key)
			links[key] = ln
		}
	}
	for key, ln := range links {
		if want[key] == nil {
			ln.close()
			delete(links, key)
		}
	}
	var names []string
	for key := range links {
		names = append(names, key.name)
	}
	slices.Sort(names)
	l.mu.Lock()
	l.names = slices.Compact(names)
	l.mu.Unlock()
}

// maxAddresses keeps an announcement small.
const maxAddresses = 8

// prefixes returns an interface's own addresses, each with the network that it
// is in. An interface that has just gone has none.
func prefixes(ifi net.Interface) (out []netip.Prefix) {
	addrs, _ := ifi.Addrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && len(out) < maxAddresses {
			out = append(out, p)
		}
	}
	return out
}

func hasFamily(here []netip.Prefix, v6 bool) bool {
	for _, p := range here {
		if p.Addr().Is6() == v6 {
			return true
		}
	}
	return false
}

// virtual are the beginnings of names of interfaces behind which there is no
// local network, but containers, virtual machines or a tunnel.
var virtual = []string{
	"docker", "br-", "veth", "virbr", "vnet", "vmnet", "lxc", "lxd", "cni", "cali", "flannel", "podman",
	"tun", "tap", "wg", "utun", "ipsec", "tailscale", "nebula", "zt", "bridge", "awdl", "llw",
}

// lanInterfaces returns the interfaces that look like a local network, or the
// loopback interface if there are none.
func lanInterfaces() ([]net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var lan, loopback []net.Interface
	for _, ifi := range all {
		switch {
		case ifi.Flags&net.FlagUp == 0:
		case ifi.Flags&net.FlagLoopback != 0:
			loopback = append(loopback, ifi)
		case ifi.Flags&net.FlagMulticast != 0 && ifi.Flags&net.FlagPointToPoint == 0 && !isVirtual(ifi.Name):
			lan = append(lan, ifi)
		}
	}
	if len(lan) == 0 {
		return loopback, nil
	}
	return lan, nil
}

func isVirtual(name string) bool {
	for _, prefix := range virtual {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
