package dispatch

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/remote"
	runner "github.com/balanceai/balance/exec/run"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// site is a machine that really runs programs, behind the task protocol.
type site struct {
	*station
	m      *machine // its ledger and name
	cfg    runner.Config
	runner *runner.Runner
}

func (l *lab) site(m *machine) *site {
	blobs, err := blob.Open(l.t.TempDir())
	if err != nil {
		l.t.Fatal(err)
	}
	s := &site{m: m, cfg: runner.Config{
		Dir: filepath.Join(l.t.TempDir(), m.name), Self: m.id(), Name: m.name, Ledger: m.ledger, Blobs: blobs, Grace: 100 * time.Millisecond,
		Log:   slog.New(slog.DiscardHandler),
		Admit: func(runner.Ask) (runner.Grant, []task.Reason) { return runner.Grant{}, nil },
		Fetch: func(context.Context, identity.ID, wire.Hash, int64) (io.ReadCloser, error) {
			return nil, os.ErrNotExist
		},
	}}
	s.open(l)
	s.station = l.overHTTP(l.t.(*testing.T), m)
	s.down()
	s.serve(l)
	l.t.Cleanup(func() { _ = s.runner.Close() })
	return s
}

func (s *site) open(l *lab) {
	var err error
	if s.runner, err = runner.Open(context.Background(), s.cfg); err != nil {
		l.t.Fatal(err)
	}
}

// serve answers for the runner that there is now.
func (s *site) serve(l *lab) {
	r := s.runner
	s.server = &remote.Server{
		Self: s.m.id(), Runner: r,
		Caller: func(*http.Request) (identity.ID, bool) { return l.cfg.Self, true },
		Submitted: func(ctx context.Context, id string, by identity.ID) bool {
			from, err := r.Submitter(ctx, id)
			return err == nil && from == by
		},
	}
	s.up()
}

// restart ends the machine's node, and starts it again.
func (s *site) restart(l *lab) {
	s.down()
	_ = s.runner.Close()
	s.open(l)
	s.serve(l)
}

// Partitions, restarts of machines and of the submitter at random: no attempt
// works after a newer one has begun to, and each run has one result that counts
// (R1, R3, R23).
func TestRetriesUnderChaos(t *testing.T) {
	l := newLab(t, func(c *Config) { c.LostAfter = 200 * time.Millisecond })
	sites := []*site{l.site(l.hydra), l.site(l.io), l.site(l.juno)}
	dir := t.TempDir()
	over := filepath.Join(dir, "over")
	var ids []string
	for i := range 4 {
		spec := leased()
		beats := filepath.Join(dir, strconv.Itoa(i))
		spec.Command = []string{"sh", "-c", `while [ ! -e "$2" ]; do echo $BALANCE_ATTEMPT >> "$1"; sleep 0.02; done; echo result of $BALANCE_ATTEMPT`, "sh", beats, over}
		ids = append(ids, l.submit(spec))
	}
	for _, s := range sites { // each for longer than a lease, so that what it has is retried
		s.down()
		time.Sleep(lease.Shortest + time.Second)
		s.up()
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for begin := time.Now(); time.Since(begin) < 8*time.Second; {
		s := sites[rnd.IntN(len(sites))]
		switch rnd.IntN(4) {
		case 0, 1: // cut off, for less than the lease or for more
			s.down()
			time.Sleep(time.Duration(rnd.IntN(2200)) * time.Millisecond)
			s.up()
		case 2:
			s.restart(l)
		case 3:
			_ = l.d.Close()
			l.up()
		}
		time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
	}
	if err := os.WriteFile(over, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	retried := 0
	for i, id := range ids {
		events := l.end(id)
		st := l.status(id)
		if st.State != task.Succeeded || !st.Receipt || count(l.ledger.kinds(id), task.KindReceipt) != 1 {
			t.Errorf("run %d: %+v, %s", i, st, l.ledger.kinds(id))
		}
		if got := brief(events); !strings.Contains(got, fmt.Sprintf("result of %d", st.Attempt)) || strings.Count(got, "result of") != 1 {
			t.Errorf("run %d: %s", i, got)
		}
		b, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		newest := 0
		for line := range strings.Lines(string(b)) {
			n, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil || n < newest {
				t.Fatalf("run %d: attempt %q worked after attempt %d had begun: %v", i, line, newest, err)
			}
			newest = n
		}
		retried += newest - 1
	}
	t.Logf("%d attempts more than runs", retried)
	if retried == 0 {
		t.Error("nothing was retried")
	}
}
