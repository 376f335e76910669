package mesh

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// DoorPort is the one TCP port that a joiner reaches, at
// [identity.MeshID.DoorAddress].
const DoorPort = 1

// knockFor is how long Knock waits for an answer.
const knockFor = 5 * time.Second

// Joiner is the holder of an invite, as the door knows it from the log and
// from the invite's secret.
type Joiner struct {
	ID    identity.ID // public half of the invite's signing key
	WG    identity.WGPublic
	PSK   [32]byte
	Until time.Time // the invite's expiry
}

// joiner is an open door.
type joiner struct {
	*peer
	end *time.Timer
}

// OpenDoor lets a joiner reach the door until the invite expires or CloseDoor is
// called.
func (n *Node) OpenDoor(j Joiner) {
	n.configure.Lock()
	defer n.configure.Unlock()
	n.closeDoor(j.ID)
	open := time.Until(j.Until)
	if open <= 0 {
		return
	}
	p := newPeer(n.bind, j.WG, n.cfg.Mesh.JoinAddress(j.ID))
	p.psk = j.PSK
	n.mu.Lock()
	n.joiners[j.ID] = &joiner{p, time.AfterFunc(open, func() { n.CloseDoor(j.ID) })}
	n.mu.Unlock()
	n.addPeers([]*peer{p})
}

// CloseDoor makes a joiner a stranger at once.
func (n *Node) CloseDoor(join identity.ID) {
	n.configure.Lock()
	defer n.configure.Unlock()
	n.closeDoor(join)
}

func (n *Node) closeDoor(join identity.ID) {
	n.mu.Lock()
	j := n.joiners[join]
	delete(n.joiners, join)
	n.mu.Unlock()
	if j != nil {
		j.end.Stop()
		n.removePeers([]*peer{j.peer})
	}
}

// DoorListener accepts the connections of joiners.
func (n *Node) DoorListener() (net.Listener, error) {
	return n.net.ListenTCP(netip.AddrPortFrom(n.door, DoorPort))
}

// Visitor is the holder of an invite at the door.
type Visitor struct {
	*tunnel
	door netip.Addr
}

// Knock asks the door of an invite for an answer, at all the addresses in the
// invite at once. It fails with [ErrNoAnswer] when none comes within five
// seconds: a door that does not know the invite, or not any more, is as silent
// as one that is not there.
func Knock(ctx context.Context, v *wire.Invite, log *slog.Logger) (*Visitor, error) {
	if err := identity.CheckWG(v.Door); err != nil {
		return nil, fmt.Errorf("knock: %w", err)
	}
	keys := v.Secret.Keys(v.Mesh)
	t, err := openTunnel(tunnelConfig{
		key:    keys.WG,
		addrs:  []netip.Addr{v.Mesh.JoinAddress(keys.Sign.ID())},
		log:    log,
		onPath: func(*peer, Path) {},
	})
	if err != nil {
		return nil, fmt.Errorf("knock: %w", err)
	}
	p := newPeer(t.bind, v.Door, v.Mesh.DoorAddress())
	p.psk = keys.PSK
	p.store(v.Endpoints)
	t.addPeers([]*peer{p})
	ctx, cancel := context.WithTimeout(ctx, knockFor)
	defer cancel()
	if len(v.Streams) > 0 {
		by := time.AfterFunc(udpFirst, func() {
			if err := t.bind.streams.dial(ctx, p, v.Streams); err != nil {
				log.Debug("knock by TCP", "error", err)
			}
		})
		defer by.Stop()
	}
	if _, err := p.knock(ctx); err != nil {
		t.close()
		return nil, fmt.Errorf("knock: %w", err)
	}
	return &Visitor{t, p.addr}, nil
}

// Dial connects to the door's listener.
func (v *Visitor) Dial(ctx context.Context) (net.Conn, error) {
	c, err := v.dial(ctx, netip.AddrPortFrom(v.door, DoorPort))
	if err != nil {
		return nil, fmt.Errorf("dial the door: %w", err)
	}
	return c, nil
}

// Close ends the visitor's connections.
func (v *Visitor) Close() error {
	v.close()
	return nil
}
