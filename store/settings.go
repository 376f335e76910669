package store

import (
	"context"
	"database/sql"
	"errors"
)

// Setting returns a value of this node's own, such as its UDP port; empty where
// there is none.
func (s *Store) Setting(ctx context.Context, name string) (string, error) {
	var value string
	err := s.readers.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = ?`, name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return value, s.explain("read setting "+name+" from", err)
}

// SetSetting stores a value of this node's own.
func (s *Store) SetSetting(ctx context.Context, name, value string) error {
	return s.explain("save setting "+name+" to", s.write(ctx, func(t *tx) error {
		return t.exec(`INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)`, name, value)
	}))
}
