package store

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// maxAddrs bounds the addresses kept of one peer.
const maxAddrs = 8

// Addr is a UDP address at which a peer was seen.
type Addr struct {
	Peer identity.ID
	Addr netip.AddrPort
	Seen time.Time
}

// SaveAddr remembers that a peer answered at an address. Of each peer the newest
// eight are kept.
func (s *Store) SaveAddr(ctx context.Context, peer identity.ID, addr netip.AddrPort, seen time.Time) error {
	if !addr.IsValid() {
		return fmt.Errorf("save an address of %s: there is none", peer.Short())
	}
	return s.explain("save address to", s.write(ctx, func(t *tx) error {
		err := t.exec(`INSERT OR REPLACE INTO addrs (peer, addr, seen) VALUES (?, ?, ?)`, peer[:], addr.String(), seen.UnixMilli())
		if err != nil {
			return err
		}
		return t.exec(`DELETE FROM addrs WHERE peer = ?1 AND addr NOT IN (
			SELECT addr FROM addrs WHERE peer = ?1 ORDER BY seen DESC, addr LIMIT ?2)`, peer[:], maxAddrs)
	}))
}

// Addrs returns the addresses of all peers, the newest first.
func (s *Store) Addrs(ctx context.Context) ([]Addr, error) {
	list, err := s.addrs(ctx)
	return list, s.explain("read addresses from", err)
}

func (s *Store) addrs(ctx context.Context) ([]Addr, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT peer, addr, seen FROM addrs ORDER BY seen DESC, addr`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Addr
	for rows.Next() {
		var peer []byte
		var addr string
		var seen int64
		if err := rows.Scan(&peer, &addr, &seen); err != nil {
			return nil, err
		}
		at, err := netip.ParseAddrPort(addr)
		if err != nil || len(peer) != len(identity.ID{}) {
			return nil, unexpected("address %.60q of peer %x", addr, peer)
		}
		out = append(out, Addr{identity.ID(peer), at, time.UnixMilli(seen)})
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	return out, nil
}
