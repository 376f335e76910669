package policy

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/task"
)

func at(clock string) time.Time {
	t, err := time.Parse("15:04", clock)
	if err != nil {
		panic(err)
	}
	return t
}

// asks is a run of owner's on alice's machine.
func asks(owner string, needs task.Needs, now string) Question {
	return Question{From: Asker{Owner: owner}, Machine: "alice", Needs: needs.Held(), Now: at(now), Isolation: IsolationNone}
}

// The table was written by hand from what an owner would expect: who, what, and
// when against the grants of one machine.
func TestTable(t *testing.T) {
	const g = task.GiB
	terms := Terms{Offers: true, Others: []Grant{
		{Owner: "ben", Isolation: IsolationNone, CPU: 4 * task.Core, Memory: 8 * g, GPUs: 1, Time: time.Hour},
		{Owner: "cleo", Isolation: IsolationNone, CPU: 2 * task.Core, Memory: 4 * g, Hours: "22:00-07:00"},
		{Owner: AnyOwner, Isolation: IsolationNone, CPU: task.Core, Memory: g, Hours: "12:00-13:00"},
	}}
	hour := task.Limits{Time: time.Hour}
	for _, tc := range []struct {
		name   string
		q      Question
		limits task.Limits
		held   task.Needs
		want   string // the reasons; empty: allowed
		ever   bool
	}{
		{"the owner: anything, any time", asks("alice", task.Needs{CPU: 64 * task.Core, GPUs: 8}, "03:00"), task.Limits{}, task.Needs{}, "", false},
		{"ben within his grant", asks("ben", task.Needs{CPU: 4 * task.Core, Memory: 8 * g, GPUs: 1}, "03:00"), hour, task.Needs{}, "", false},
		{"ben without a time limit", asks("ben", task.Needs{}, "03:00"), task.Limits{}, task.Needs{}, "grants ben runs of 1h0m0s at most: give the run a time limit within that", false},
		{"ben for too long", asks("ben", task.Needs{}, "03:00"), task.Limits{Time: 2 * time.Hour}, task.Needs{}, "grants ben runs of 1h0m0s at most: give the run a time limit within that", false},
		{"ben with too much, ever", asks("ben", task.Needs{GPUs: 2}, "03:00"), hour, task.Needs{}, "grants ben 1 GPUs in all, 0 are in use, the run needs 2", false},
		{"ben with too much, now", asks("ben", task.Needs{CPU: 2 * task.Core, Memory: g}, "03:00"), hour, task.Needs{CPU: 3 * task.Core, Memory: 8 * g}, "grants ben 4 cores in all, 3 are in use, the run needs 2; grants ben 8 GiB of memory in all, 8 GiB are in use, the run needs 1 GiB", true},
		{"ben is not everybody too", asks("ben", task.Needs{CPU: 4 * task.Core}, "12:30"), hour, task.Needs{}, "", false},
		{"cleo at night", asks("cleo", task.Needs{}, "22:00"), task.Limits{}, task.Needs{}, "", false},
		{"cleo before the morning", asks("cleo", task.Needs{}, "06:59"), task.Limits{}, task.Needs{}, "", false},
		{"cleo in the morning", asks("cleo", task.Needs{}, "07:00"), task.Limits{}, task.Needs{}, "is open to cleo at these hours: 22:00-07:00", true},
		{"dora at noon", asks("dora", task.Needs{}, "12:00"), task.Limits{}, task.Needs{}, "", false},
		{"dora after noon", asks("dora", task.Needs{}, "13:00"), task.Limits{}, task.Needs{}, "is open to dora at these hours: 12:00-13:00", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.q.Limits, tc.q.Held = tc.limits, Held{CPU: tc.held.CPU, Memory: tc.held.Memory, GPUs: tc.held.GPUs}
			var texts []string
			for _, r := range terms.Ask(tc.q) {
				texts = append(texts, r.Text)
				if r.Rule != "terms" || r.Ever != tc.ever {
					t.Errorf("reason %+v", r)
				}
			}
			if got := strings.Join(texts, "; "); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestRelays(t *testing.T) {
	for _, tc := range []struct {
		relay, from, to string
		want            bool
	}{
		{"", "alice", "alice", false},
		{RelayOwn, "alice", "ben", true},
		{RelayOwn, "ben", "alice", true},
		{RelayOwn, "ben", "cleo", false},
		{RelayAll, "ben", "cleo", true},
		{"some", "alice", "alice", false},
	} {
		if got := (Terms{Relay: tc.relay}).Relays("alice", tc.from, tc.to); got != tc.want {
			t.Errorf("%q from %s to %s: %v", tc.relay, tc.from, tc.to, got)
		}
	}
	if (Terms{Relay: RelayOwn}).Relays("", "", "") {
		t.Error("a machine without an owner relays")
	}
}

func TestDeniesByDefault(t *testing.T) {
	all := []Grant{{Owner: AnyOwner, Isolation: IsolationNone, CPU: math.MaxUint64, Memory: math.MaxUint64, GPUs: math.MaxInt}}
	for name, tc := range map[string]struct {
		terms Terms
		q     Question
	}{
		"the zero terms, to the owner":        {Terms{}, asks("alice", task.Needs{}, "12:00")},
		"no offer, whatever the grants":       {Terms{Others: all}, asks("ben", task.Needs{}, "12:00")},
		"no grants":                           {Terms{Offers: true}, asks("ben", task.Needs{}, "12:00")},
		"a grant of nothing":                  {Terms{Offers: true, Others: []Grant{{Owner: "ben", Isolation: IsolationNone}}}, asks("ben", task.Needs{}, "12:00")},
		"a grant that accepts no isolation":   {Terms{Offers: true, Others: []Grant{{Owner: "ben", CPU: 8000, Memory: task.TiB}}}, asks("ben", task.Needs{}, "12:00")},
		"a machine that does not say its own": {Terms{Offers: true, Others: []Grant{{Owner: "ben", CPU: 8000, Memory: task.TiB}}}, Question{From: Asker{Owner: "ben"}, Machine: "alice", Needs: task.Needs{}.Held()}},
	} {
		if tc.terms.Ask(tc.q) == nil {
			t.Errorf("%s: allowed", name)
		}
	}
	if got := (Terms{Offers: true, Others: all}).Ask(asks("ben", task.Needs{CPU: 8000}, "12:00")); got != nil {
		t.Errorf("everything to everybody: %v", got)
	}
}

// A name that looks like a granted one is another name.
func TestLookAlikes(t *testing.T) {
	terms := Terms{Offers: true, Others: []Grant{{Owner: "ben", Isolation: IsolationNone, CPU: 8000, Memory: task.TiB}}}
	if terms.Ask(asks("ben", task.Needs{}, "12:00")) != nil {
		t.Fatal("ben is refused")
	}
	for _, name := range []string{
		"", "be", "benn", "abен", "ben2", "xben", "ben-", "-ben", "ben ", " ben", "ben\n", "ben\x00", "Ben", "BEN",
		"b\u0435n",                            // Cyrillic е
		"be\u0301n",                           // combining accent
		"\uff42\uff45\uff4e",                  // full width
		"be\u200bn", "\ufeffben", "be\u00adn", // invisible characters
		"*", "?en", "b*", "ben,alice", "ali\u0441e", "alice ",
	} {
		if terms.Ask(asks(name, task.Needs{}, "12:00")) == nil {
			t.Errorf("%q passed for ben or alice", name)
		}
	}
}

// What a stranger asks for may be any number: sums must not wrap.
func TestHugeNeeds(t *testing.T) {
	terms := Terms{Offers: true, Others: []Grant{{Owner: "ben", Isolation: IsolationNone, CPU: 4000, Memory: task.GiB, GPUs: 1}}}
	rapid.Check(t, func(t *rapid.T) {
		q := asks("ben", task.Needs{}, "12:00")
		q.Needs.CPU = task.CPU(rapid.Uint64().Draw(t, "cpu"))
		q.Needs.Memory = task.Bytes(rapid.Uint64().Draw(t, "memory"))
		q.Held.CPU = task.CPU(rapid.Uint64().Draw(t, "held cpu"))
		q.Held.Memory = task.Bytes(rapid.Uint64().Draw(t, "held memory"))
		fits := q.Held.CPU <= 4000 && q.Needs.CPU <= 4000-q.Held.CPU && q.Held.Memory <= task.GiB && q.Needs.Memory <= task.GiB-q.Held.Memory
		if got := terms.Ask(q); q.Needs.CPU > 0 && q.Needs.Memory > 0 && (got == nil) != fits {
			t.Fatalf("%+v: %v", q, got)
		}
	})
}

func TestCheck(t *testing.T) {
	good := Grant{Owner: "ben", Isolation: IsolationNone, CPU: 1, Memory: 1}
	with := func(change func(*Grant)) Terms {
		g := good
		change(&g)
		return Terms{Others: []Grant{g}}
	}
	if err := (Terms{Others: []Grant{good, {Owner: "*", CPU: 1, Memory: 1}}}).Check(); err != nil {
		t.Error(err)
	}
	for name, terms := range map[string]Terms{
		"owner twice":           {Others: []Grant{good, good}},
		"no owner":              with(func(g *Grant) { g.Owner = "" }),
		"odd owner":             with(func(g *Grant) { g.Owner = "Ben" }),
		"isolation":             with(func(g *Grant) { g.Isolation = "vm" }),
		"no cpu":                with(func(g *Grant) { g.CPU = 0 }),
		"no memory":             with(func(g *Grant) { g.Memory = 0 }),
		"negative GPUs":         with(func(g *Grant) { g.GPUs = -1 }),
		"negative time":         with(func(g *Grant) { g.Time = -1 }),
		"hours":                 with(func(g *Grant) { g.Hours = "24:00-25:00" }),
		"a node of anybody":     with(func(g *Grant) { g.Owner, g.Node = AnyOwner, "laptop" }),
		"an odd node":           with(func(g *Grant) { g.Node = "Lap Top" }),
		"role":                  with(func(g *Grant) { g.Role = "king" }),
		"use of no time":        with(func(g *Grant) { g.Use = 1 }),
		"a long grace":          with(func(g *Grant) { g.Grace = time.Minute }),
		"on_return":             with(func(g *Grant) { g.Return, g.Idle = "cry", 1 }),
		"a return from nowhere": with(func(g *Grant) { g.Return = Pause }),
	} {
		if terms.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestHours(t *testing.T) {
	day := func(name string, clock string) time.Time { // 2026-11-01 is a Sunday
		return at(clock).AddDate(2026, 10, slices.Index(weekdays, name))
	}
	for _, tc := range []struct {
		hours string
		now   time.Time
		want  bool
	}{
		{"22:00-07:30", day("mon", "22:00"), true},
		{"22:00-07:30", day("mon", "07:29"), true},
		{"22:00-07:30", day("mon", "07:30"), false},
		{"00:00-00:00", day("mon", "12:00"), true},
		{"mon-fri 18:00-08:00", day("mon", "07:00"), false}, // of sunday
		{"mon-fri 18:00-08:00", day("mon", "18:00"), true},
		{"mon-fri 18:00-08:00", day("sat", "07:59"), true}, // of friday
		{"mon-fri 18:00-08:00", day("sat", "18:00"), false},
		{"mon-fri 18:00-08:00, sat-sun", day("sat", "18:00"), true},
		{"fri-mon", day("sun", "12:00"), true},
		{"fri-mon", day("tue", "00:00"), false},
		{"Wed  9:05-17:00", day("wed", "09:05"), true},
	} {
		h, err := ParseHours(tc.hours)
		if err != nil {
			t.Fatalf("%q: %v", tc.hours, err)
		}
		if again, err := ParseHours(string(h)); again != h || err != nil {
			t.Errorf("%q became %q", h, again)
		}
		if got := h.Open(tc.now); got != tc.want {
			t.Errorf("%s on %v: %v", tc.hours, tc.now.Format("Mon 15:04"), got)
		}
	}
	for _, s := range []string{"", " ", "22:00", "22:00-", "-07:00", "24:00-07:00", "22:60-07:00", "22-7", "22:00-07:00-08:00", "noon-night", "mon,", "mon-day 01:00-02:00", "mon 01:00-02:00 tue", "mon tue"} {
		if _, err := ParseHours(s); err == nil {
			t.Errorf("%q: no error", s)
		}
	}
	if Hours("rubbish").Open(at("12:00")) {
		t.Error("hours that nobody can read are open")
	}
}

// Of any two different hours, exactly one half of the day is open.
func TestHoursAreHalfOpen(t *testing.T) {
	clock := func(m int) string { return fmt.Sprintf("%02d:%02d", m/60, m%60) }
	rapid.Check(t, func(t *rapid.T) {
		from, to := rapid.IntRange(0, 1439).Draw(t, "from"), rapid.IntRange(0, 1439).Draw(t, "to")
		now := at(clock(rapid.IntRange(0, 1439).Draw(t, "now")))
		day, night := Hours(clock(from)+"-"+clock(to)).Open(now), Hours(clock(to)+"-"+clock(from)).Open(now)
		if from != to && day == night || from == to && !day {
			t.Fatalf("%s-%s at %v: %v and %v", clock(from), clock(to), now, day, night)
		}
	})
}

func FuzzHours(f *testing.F) {
	f.Add("mon-fri 18:00-08:00, sat-sun")
	f.Add("22:00-07:00")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHours(s)
		if err != nil {
			return
		}
		if again, err := ParseHours(string(h)); err != nil || again != h {
			t.Fatalf("%q became %q, then %q: %v", s, h, again, err)
		}
	})
}
