package run

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// The same signed order, 1,000 times at once: one process (TRUST, T24).
func TestOrderAgain(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "starts")
	o := order(spec("sh", "-c", "echo started >> "+file+"; sleep 0.2; echo done"))
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			var r result
			if err := l.Start(t.Context(), o, r.add); err != nil || r.stdout.String() != "done\n" {
				t.Errorf("%q, %v", r.stdout.String(), err)
			}
		})
	}
	wg.Wait()
	r := l.run(o) // and after its end
	if r.stdout.String() != "done\n" {
		t.Errorf("then %q", r.stdout.String())
	}
	_ = l.Close()
	l.open()
	l.run(o) // and in another life
	if b, err := os.ReadFile(file); err != nil || string(b) != "started\n" {
		t.Errorf("started %q, %v", b, err)
	}
	if got := l.ledger.kinds(o.Run, nodeKey); len(got) != 3 {
		t.Errorf("the ledger has %v", got)
	}
}

func refusal(t *testing.T, err error) *task.Refusal {
	t.Helper()
	var r *task.Refusal
	if !errors.As(err, &r) || len(r.Reasons) == 0 {
		t.Fatalf("not a refusal: %v", err)
	}
	return r
}

func nothing(*task.Event) error { return errors.New("an event of a run that should not be") }

func TestInvalidOrders(t *testing.T) {
	l := newLab(t)
	good := order(spec("true"))
	other := order(spec("true"))
	forged := *good.Entries[0]
	forged.Sig[0] ^= 1
	stranger := sign(strangers, nil, task.Draft{Topic: good.Run, Kind: task.KindSubmit, Record: task.Submit{Spec: spec("true")}})
	elsewhere := sign(userKey, good.Entries[:1], task.Draft{Topic: good.Run, Kind: task.KindPlace, Record: task.Place{Attempt: 1, Node: strangers.ID()}})
	text := sign(userKey, nil, task.Draft{Topic: good.Run, Kind: task.KindSubmit, Record: task.Place{}})
	for name, o := range map[string]task.Order{
		"no run":            {Run: "../x", Attempt: 1, From: userKey.ID(), Entries: good.Entries},
		"another run":       {Run: other.Run, Attempt: 1, From: userKey.ID(), Entries: good.Entries},
		"another sender":    {Run: good.Run, Attempt: 1, From: strangers.ID(), Entries: good.Entries},
		"another attempt":   {Run: good.Run, Attempt: 2, From: userKey.ID(), Entries: good.Entries},
		"another's submit":  {Run: good.Run, Attempt: 1, From: userKey.ID(), Entries: []*wire.Entry{stranger, good.Entries[1]}},
		"no submit":         {Run: good.Run, Attempt: 1, From: userKey.ID(), Entries: good.Entries[1:]},
		"no place":          {Run: good.Run, Attempt: 1, From: userKey.ID(), Entries: good.Entries[:1]},
		"placed elsewhere":  {Run: good.Run, Attempt: 1, From: userKey.ID(), Entries: []*wire.Entry{good.Entries[0], elsewhere}},
		"forged":            {Run: good.Run, Attempt: 1, From: userKey.ID(), Entries: []*wire.Entry{&forged, good.Entries[1]}},
		"not a submit":      {Run: good.Run, Attempt: 1, From: userKey.ID(), Entries: []*wire.Entry{text, good.Entries[1]}},
		"nothing":           {Run: good.Run, Attempt: 1, From: userKey.ID()},
		"no command":        orderOf(good.Run, task.Spec{Driver: task.DriverProcess}, 1),
		"path leaves":       orderOf(good.Run, task.Spec{Driver: task.DriverProcess, Command: []string{"true"}, Outputs: []string{"../x"}}, 1),
		"environment":       orderOf(good.Run, task.Spec{Driver: task.DriverProcess, Command: []string{"true"}, Env: map[string]string{"a=b": ""}}, 1),
		"an unknown driver": orderOf(good.Run, task.Spec{Driver: "vm", Command: []string{"true"}}, 1),
	} {
		if r := refusal(t, l.Start(t.Context(), o, nothing)); r.Reasons[0].Rule != "order" || len(r.Entries) != 0 {
			t.Errorf("%s: %v", name, r)
		}
	}
	if len(l.ledger.topics) != 0 {
		t.Errorf("the ledger has %d entries", len(l.ledger.topics))
	}
	if folders := l.folders(); len(folders) != 0 {
		t.Errorf("%d folders", len(folders))
	}
	l.run(good)
}

// Who knows the id of another's run gets nothing of it.
func TestAnothersRun(t *testing.T) {
	l := newLab(t)
	o := order(spec("sh", "-c", "echo secret; read x"))
	theft := func() {
		t.Helper()
		submit := sign(strangers, nil, task.Draft{Topic: o.Run, Kind: task.KindSubmit, Record: task.Submit{Spec: spec("true")}})
		place := sign(strangers, []*wire.Entry{submit}, task.Draft{Topic: o.Run, Kind: task.KindPlace, Record: task.Place{Attempt: 1, Node: nodeKey.ID()}})
		thief := task.Order{Run: o.Run, Attempt: 1, From: strangers.ID(), Entries: []*wire.Entry{submit, place}}
		if r := refusal(t, l.Start(t.Context(), thief, nothing)); r.Reasons[0].Rule != "order" || len(r.Entries) != 0 {
			t.Errorf("%v", r)
		}
		if id, err := l.Submitter(t.Context(), o.Run); err != nil || id != userKey.ID() {
			t.Errorf("submitter %v, %v", id, err)
		}
	}
	w := l.start(o)
	w.untilOutput("secret")
	theft()
	_ = l.Cancel(t.Context(), o.Run, true)
	w.end()
	theft()
	if got := l.ledger.kinds(o.Run, strangers); len(got) != 0 {
		t.Errorf("the ledger has %v", got)
	}
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	image := spec("true")
	image.Driver, image.Image = task.DriverImage, "example.org/x"
	large := spec("true")
	large.Inputs = []task.Input{{Path: "x", Size: task.TiB, Kind: task.KindFile}, {Path: "y", Size: 1 << 62, Kind: task.KindFile}}
	if r := refusal(t, l.Start(t.Context(), order(large), nothing)); r.Reasons[0].Rule != "disk" || !r.Reasons[0].Ever {
		t.Errorf("large inputs: %v", r.Reasons)
	}
	l.admit = func(Ask) (Grant, []task.Reason) {
		return Grant{}, []task.Reason{{Rule: "memory", Text: "needs 8 GiB"}, {Rule: "arch", Text: "is arm64"}}
	}
	o := order(image)
	r := refusal(t, l.Start(t.Context(), o, nothing))
	if len(r.Reasons) != 3 || r.Reasons[1].Text != "is arm64" || r.Reasons[2].Rule != "driver" {
		t.Errorf("reasons %v", r.Reasons)
	}
	if len(r.Entries) != 1 || r.Entries[0].Kind != task.KindRefused || r.Entries[0].Author != nodeKey.ID() {
		t.Errorf("entries %v", r.Entries)
	}
	if got := l.ledger.kinds(o.Run, nodeKey); !slices.Equal(got, []string{task.KindRefused}) {
		t.Errorf("the ledger has %v", got)
	}
	if err := l.Follow(t.Context(), o.Run, 0, nothing); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("follow: %v", err)
	}

	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{}, []task.Reason{{Rule: "driver", Text: "has none"}} }
	if r := refusal(t, l.Start(t.Context(), order(image), nothing)); len(r.Reasons) != 1 {
		t.Errorf("one reason twice: %v", r.Reasons)
	}

	// A refusal stands, so that a late copy of the order starts nothing.
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{}, nil }
	o2 := order(spec("true"))
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{}, []task.Reason{{Rule: "hours", Text: "is closed"}} }
	_ = refusal(t, l.Start(t.Context(), o2, nothing))
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{}, nil }
	_ = l.Close()
	l.open()
	if r := refusal(t, l.Start(t.Context(), o2, nothing)); r.Reasons[0].Text != "is closed" || len(r.Entries) != 1 {
		t.Errorf("again: %v", r)
	}
	// Another attempt may come, and its submitter gets the whole chain.
	next := orderOf(o2.Run, spec("true"), 2)
	next.Entries[0] = o2.Entries[0]
	next.Entries = append(o2.Entries, sign(userKey, o2.Entries, task.Draft{Topic: o2.Run, Kind: task.KindPlace, Record: task.Place{Attempt: 2, Node: nodeKey.ID()}}))
	if r := l.run(next); !slices.Equal(r.kinds(), []string{task.KindRefused, task.KindAccepted, task.KindStarted, task.KindFinished}) {
		t.Errorf("events carried %v", r.kinds())
	}
	// One attempt on one machine.
	third := next
	third.Attempt = 3
	third.Entries = append(next.Entries, sign(userKey, next.Entries, task.Draft{Topic: o2.Run, Kind: task.KindPlace, Record: task.Place{Attempt: 3, Node: nodeKey.ID()}}))
	if r := refusal(t, l.Start(t.Context(), third, nothing)); r.Reasons[0].Rule != "attempt" {
		t.Errorf("a third attempt: %v", r.Reasons)
	}
}

func TestLedgerFails(t *testing.T) {
	l := newLab(t)
	o := order(spec("true"))
	full := errors.New("the disk is full")
	l.ledger.fail(full)
	if err := l.Start(t.Context(), o, nothing); !errors.Is(err, full) {
		t.Errorf("start: %v", err)
	}
	if len(l.Held()) != 0 {
		t.Errorf("held %v", l.Held())
	}
	l.ledger.fail(nil)
	l.run(o) // it was not accepted, so it may be now

	// A promise is kept when the end cannot be written at once.
	w := l.start(order(spec("sh", "-c", "echo ready; sleep 0.2; exit 5")))
	w.untilOutput("ready")
	l.ledger.fail(full)
	eventually(t, "its end", func() bool { return len(l.Held()) == 0 })
	l.ledger.fail(nil)
	if r := w.end(); r.account.ExitCode != 5 {
		t.Errorf("account %+v", r.account)
	}
}
