package store

import (
	"context"
	"fmt"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// Door is an invite of this node that is open: what it takes to let its holder
// knock again after a restart.
type Door struct {
	Join    identity.ID
	WG      identity.WGPublic
	PSK     [32]byte `json:"-"` // secret
	Expires time.Time
}

// Format keeps the secret out of logs and errors.
func (d Door) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "door %s until %s", d.Join.Short(), d.Expires.Format(time.RFC3339))
}

// SaveDoor remembers an open invite.
func (s *Store) SaveDoor(ctx context.Context, d Door) error {
	return s.explain("save invite to", s.write(ctx, func(t *tx) error {
		return t.exec(`INSERT OR REPLACE INTO doors (join_id, wg, psk, expires) VALUES (?, ?, ?, ?)`,
			d.Join[:], d.WG[:], d.PSK[:], d.Expires.UnixMilli())
	}))
}

// DropDoor forgets an invite that was used, or has expired.
func (s *Store) DropDoor(ctx context.Context, join identity.ID) error {
	return s.explain("drop invite from", s.write(ctx, func(t *tx) error {
		return t.exec(`DELETE FROM doors WHERE join_id = ?`, join[:])
	}))
}

// Doors returns the invites that were saved and not dropped.
func (s *Store) Doors(ctx context.Context) ([]Door, error) {
	list, err := s.doors(ctx)
	return list, s.explain("read invites from", err)
}

func (s *Store) doors(ctx context.Context) ([]Door, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT join_id, wg, psk, expires FROM doors ORDER BY expires`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Door
	for rows.Next() {
		var join, wg, psk []byte
		var expires int64
		if err := rows.Scan(&join, &wg, &psk, &expires); err != nil {
			return nil, err
		}
		if len(join) != 32 || len(wg) != 32 || len(psk) != 32 {
			return nil, unexpected("invite %x", join)
		}
		out = append(out, Door{identity.ID(join), identity.WGPublic(wg), [32]byte(psk), time.UnixMilli(expires)})
	}
	return out, rows.Err()
}
