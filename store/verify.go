package store

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/mattn/go-sqlite3"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// verifyPage is how many entries are read and checked at a time.
const verifyPage = 512

// Report is what [Store.Verify] found.
type Report struct {
	OK      bool      `json:"ok"`
	Entries int       `json:"entries"` // sound ones, up to the first bad one
	Topics  int       `json:"topics"`
	Bad     *BadEntry `json:"bad,omitempty"`
}

// BadEntry is the first entry that is not sound, in the order of topic, author,
// segment and number.
type BadEntry struct {
	Topic   string      `json:"topic"`
	Author  identity.ID `json:"author"`
	Segment uint64      `json:"segment"`
	Seq     uint64      `json:"seq"`
	Why     string      `json:"why"`
}

// Verify reads the whole ledger from the file and checks every chain and every
// signature, and that the file itself is sound. An entry whose row says anything
// but what was signed is bad, and so is one that is missing from within a chain.
// What cannot be told without other nodes is that the end of a chain is gone.
//
// The error is about the check, never about what it found.
func (s *Store) Verify(ctx context.Context) (Report, error) {
	// A connection of its own: those in use hold pages that they read before.
	db, err := sql.Open("sqlite3", dsn(s.path, true))
	if err != nil {
		return Report{}, s.explain("verify", err)
	}
	defer func() { _ = db.Close() }()
	v := verifier{db: db}
	v.mesh, v.joined = s.Mesh()
	err = v.run(ctx)
	if damage(err) {
		v.bad("the file is damaged here or further on: %v", err)
		err = nil
	}
	v.report.OK = err == nil && v.report.Bad == nil
	return v.report, s.explain("verify", err)
}

// damage reports whether err says that the file is not sound.
func damage(err error) bool {
	e, ok := errors.AsType[sqlite3.Error](err)
	return ok && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB) || errors.Is(err, ErrDamaged)
}

// verifier walks the entries in the order of their index, a page at a time, so
// that it holds up nobody.
type verifier struct {
	db      *sql.DB
	mesh    identity.MeshID
	joined  bool
	genesis bool // it was met
	at      row  // where the walk stands
	end     end  // of the chain that at is in
	report  Report
}

// row is an entry as its columns say.
type row struct {
	topic    string
	author   []byte
	segment  int64
	seq      int64
	kind     string
	raw, sig []byte
}

func (v *verifier) run(ctx context.Context) error {
	for {
		page, err := v.page(ctx)
		if v.check(page); err != nil || v.report.Bad != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
	}
	v.at = row{}
	if v.joined && !v.genesis {
		v.bad("the genesis record is missing")
		return nil
	}
	var answer string
	if err := v.db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&answer); err != nil {
		return err
	}
	if answer != "ok" {
		v.bad("the file is damaged: %s", answer)
	}
	return nil
}

// page returns the rows after where the walk stands, also those before an
// error.
func (v *verifier) page(ctx context.Context) (page []row, err error) {
	rows, err := v.db.QueryContext(ctx, `
		SELECT topic, author, segment, seq, kind, raw, sig FROM entries
		WHERE (topic, author, segment, seq) > (?, ?, ?, ?)
		ORDER BY topic, author, segment, seq LIMIT ?`,
		v.at.topic, v.at.author, v.at.segment, v.at.seq, verifyPage)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.topic, &r.author, &r.segment, &r.seq, &r.kind, &r.raw, &r.sig); err != nil {
			return page, fmt.Errorf("%w: %w", err, ErrDamaged) // a column of another type
		}
		page = append(page, r)
	}
	return page, rows.Err()
}

// check goes on over a page and stops at the first bad row.
func (v *verifier) check(page []row) {
	list := make([]*wire.Entry, len(page))
	errs := make([]error, len(page))
	parallel(len(page), func(i int) { list[i], errs[i] = page[i].open(v.mesh) })
	for i, r := range page {
		if v.step(r, list[i], errs[i]); v.report.Bad != nil {
			return
		}
	}
}

// open returns the entry that a row holds, if it is what its author signed.
func (r row) open(mesh identity.MeshID) (*wire.Entry, error) {
	e, err := decode(r.raw, r.sig)
	if err != nil {
		return nil, err
	}
	if r.topic != e.Topic || !bytes.Equal(r.author, e.Author[:]) || uint64(r.segment) != e.Segment || uint64(r.seq) != e.Seq || r.kind != e.Kind {
		return nil, fmt.Errorf("its columns differ from what was signed: that is %s %d/%d of %s in %s", e.Kind, e.Segment, e.Seq, e.Author.Short(), e.Topic)
	}
	return e, verify(mesh, e)
}

// step checks that a row comes next, given what open says of it.
func (v *verifier) step(r row, e *wire.Entry, err error) {
	last := v.at
	v.at = r
	if order(last, r) >= 0 {
		v.bad("the index is damaged: the rows are out of order")
		return
	}
	if r.topic != last.topic {
		v.report.Topics++
	}
	if r.topic != last.topic || !bytes.Equal(r.author, last.author) || r.segment != last.segment {
		v.end = end{}
	}
	switch {
	case uint64(r.seq) != v.end.next:
		v.at.seq = int64(v.end.next)
		v.bad("it is missing: the next one here is number %d", r.seq)
	case err != nil:
		v.bad("%v", err)
	case e.Prev != v.end.prev:
		v.bad("it does not follow the entry before it")
	default:
		v.end.advance(e)
		v.report.Entries++
		v.genesis = v.genesis || e.Hash() == wire.Hash(v.mesh)
	}
}

func order(a, b row) int {
	return cmp.Or(cmp.Compare(a.topic, b.topic), bytes.Compare(a.author, b.author), cmp.Compare(a.segment, b.segment), cmp.Compare(a.seq, b.seq))
}

// bad reports the entry at which the walk stands, unless one was bad before it.
func (v *verifier) bad(format string, args ...any) {
	if v.report.Bad != nil {
		return
	}
	b := &BadEntry{Topic: v.at.topic, Segment: uint64(v.at.segment), Seq: uint64(v.at.seq), Why: fmt.Sprintf(format, args...)}
	copy(b.Author[:], v.at.author)
	v.report.Bad = b
}
