package policy

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/task"
)

const gib = task.GiB

// Users of the table: the owner, others, and those who look like somebody else.
var users = []Asker{
	{"alice", "desk", RoleAdmin},
	{"ben", "ben-pc", RoleMember},
	{"ben", "ben-phone", RoleMember},
	{"cleo", "cleo-pc", RoleAdmin},
	{"dora", "dora-pc", RoleMember},
	{"ben2", "ben-pc", RoleMember},
	{"be", "ben-pc", RoleMember},
	{"Alice", "desk", RoleMember},
	{"", "ben-pc", RoleAdmin},
	{"*", "*", "*"},
}

// machines of alice, each with other terms.
var machines = []Terms{
	{},
	{Offers: true},
	offer(Grant{Owner: "ben", CPU: 4000, Memory: 8 * gib}),
	offer(Grant{Owner: AnyOwner, CPU: 1000, Memory: gib}),
	offer(Grant{Owner: "ben", CPU: 1000, Memory: gib}, Grant{Owner: "ben", Node: "ben-pc", CPU: 4000, Memory: 8 * gib}),
	offer(Grant{Owner: AnyOwner, Role: RoleAdmin, CPU: 4000, Memory: 8 * gib, GPUs: 1, VRAM: 16 * gib}),
	offer(Grant{Owner: "ben", CPU: 4000, Memory: 8 * gib, Hours: "mon-fri 18:00-08:00"}),
	offer(Grant{Owner: "ben", CPU: 4000, Memory: 8 * gib, GPUs: 1, Idle: 10 * time.Minute, Mains: true, GPUFree: true}),
	offer(Grant{Owner: "ben", CPU: 4000, Memory: 8 * gib, Runs: 1, Time: time.Hour, Drivers: task.DriverProcess}),
	{Offers: true, Duty: Draining, Others: []Grant{{Owner: AnyOwner, Isolation: IsolationNone, CPU: 64000, Memory: task.TiB, GPUs: 8}}},
}

func offer(grants ...Grant) Terms {
	for i := range grants {
		grants[i].Isolation = IsolationNone
	}
	return Terms{Offers: true, Others: grants}
}

// actions are what each user tries on each machine.
func actions() []Question {
	day := func(d int, clock string) time.Time { return at(clock).AddDate(2026, 10, d) } // the 1st is a Sunday
	away := Conditions{Idle: time.Hour}
	base := Question{Machine: "alice", Driver: task.DriverProcess, Needs: task.Needs{}.Held(), Isolation: IsolationNone, Now: day(3, "12:00"), Measured: &away}
	with := func(change func(*Question)) Question {
		q := base
		change(&q)
		return q
	}
	return []Question{
		base, // a small run, on a Wednesday at noon
		with(func(q *Question) { q.Needs.CPU, q.Needs.Memory = 4000, 8*gib }),
		with(func(q *Question) { q.Needs.CPU = 5000 }),
		with(func(q *Question) { q.Needs.GPUs, q.Needs.VRAM = 1, 8*gib }),
		with(func(q *Question) { q.Needs.GPUs, q.Needs.VRAM = 1, 24*gib }),
		with(func(q *Question) { q.Now = day(3, "20:00") }),
		with(func(q *Question) { q.Now = day(6, "20:00") }),
		with(func(q *Question) { q.Measured = &Conditions{Idle: time.Minute} }),
		with(func(q *Question) { q.Measured = &Conditions{Idle: time.Hour, Battery: true} }),
		with(func(q *Question) { q.Limits.Time = time.Hour }),
		with(func(q *Question) { q.Limits.Time, q.Driver = time.Hour, task.DriverImage }),
		with(func(q *Question) { q.Limits.Time, q.Held = time.Hour, Held{CPU: 100, Memory: gib / 16, Runs: 1} }),
	}
}

const (
	none = "------------"
	all  = "yyyyyyyyyyyy"
)

// expected was written by hand: for each machine and user, the actions that are
// allowed. Users that are not listed may do nothing.
var expected = []map[int]string{
	0: {},
	1: {0: all},
	2: {0: all, 1: "yy---yyyyyyy", 2: "yy---yyyyyyy"},
	3: {
		0: all, 1: "y----yyyyyyy", 2: "y----yyyyyyy", 3: "y----yyyyyyy", 4: "y----yyyyyyy", 5: "y----yyyyyyy",
		6: "y----yyyyyyy", 7: "y----yyyyyyy", 8: none, 9: "y----yyyyyyy",
	},
	4: {0: all, 1: "yy---yyyyyyy", 2: "y----yyyyyyy"},
	5: {0: all, 3: "yy-y-yyyyyyy"},
	6: {0: all, 1: "-----y------", 2: "-----y------"},
	7: {0: all, 1: "yy-yyyy--yyy", 2: "yy-yyyy--yyy"},
	8: {0: all, 1: "---------y--", 2: "---------y--"},
	9: {},
}

// T22: ten users on ten machines with twelve actions.
func TestTenTenTwelve(t *testing.T) {
	for m, terms := range machines {
		for u, user := range users {
			want, ok := expected[m][u]
			if !ok {
				want = none
			}
			got := []byte(none)
			for a, q := range actions() {
				q.From = user
				if reasons := terms.Ask(q); len(reasons) == 0 {
					got[a] = 'y'
				}
			}
			if string(got) != want {
				t.Errorf("machine %d, user %+v: %s, want %s", m, user, got, want)
			}
		}
	}
}

// Grants decide alone: the order in which they are written does not matter, and
// a run that may start is not stopped at once.
func TestProperties(t *testing.T) {
	list := actions()
	rapid.Check(t, func(t *rapid.T) {
		grants := rapid.SliceOfNDistinct(rapid.Custom(anyGrant), 0, 5, func(g Grant) Asker { return Asker{g.Owner, g.Node, g.Role} }).Draw(t, "grants")
		q := rapid.SampledFrom(list).Draw(t, "action")
		q.From = rapid.SampledFrom(users).Draw(t, "user")
		terms := Terms{Offers: true, Others: grants}
		if err := terms.Check(); err != nil {
			t.Fatal(err)
		}
		asked := terms.Ask(q)
		other := Terms{Offers: true, Others: rapid.Permutation(grants).Draw(t, "order")}
		if again := other.Ask(q); len(asked) != len(again) {
			t.Fatalf("%v, in another order %v", asked, again)
		}
		if _, ok := terms.Grant(q.From); !ok && q.From.Owner != q.Machine && len(asked) == 0 {
			t.Fatal("allowed without a grant")
		}
		if do := terms.Going(q, 0).Do; len(asked) == 0 && do != Keep {
			t.Fatalf("allowed, and then: %s", do)
		}
		terms.Duty = Paused
		if len(terms.Ask(q)) == 0 || terms.Going(q, 0).Do == Keep {
			t.Fatal("a paused machine works")
		}
	})
}

func anyGrant(t *rapid.T) Grant {
	g := Grant{
		Owner: rapid.SampledFrom([]string{"ben", "cleo", AnyOwner}).Draw(t, "owner"), Isolation: IsolationNone,
		Role: rapid.SampledFrom([]string{"", RoleAdmin, RoleMember}).Draw(t, "role"),
		CPU:  4000, Memory: 8 * gib, GPUs: rapid.IntRange(0, 1).Draw(t, "gpus"), Runs: rapid.IntRange(0, 2).Draw(t, "runs"),
		Time:  rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(t, "time"),
		Hours: rapid.SampledFrom([]Hours{"", "22:00-07:00", "mon-fri 09:00-17:00"}).Draw(t, "hours"),
		Idle:  rapid.SampledFrom([]time.Duration{0, 10 * time.Minute}).Draw(t, "idle"), Mains: rapid.Bool().Draw(t, "mains"),
	}
	if g.Owner != AnyOwner {
		g.Node = rapid.SampledFrom([]string{"", "ben-pc"}).Draw(t, "node")
	}
	return g
}

// What happens to a run when the world changes under it.
func TestGoing(t *testing.T) {
	grant := Grant{Owner: "ben", Isolation: IsolationNone, CPU: 1000, Memory: gib, Line: 14}
	with := func(change func(*Grant)) Terms {
		g := grant
		change(&g)
		return Terms{Offers: true, Others: []Grant{g}}
	}
	idle := func(action string) Terms {
		return with(func(g *Grant) { g.Idle, g.Return, g.Grace = 10*time.Minute, action, 5*time.Second })
	}
	back, unknown := &Conditions{}, &Conditions{IdleWhy: "no logind"}
	hours := with(func(g *Grant) { g.Hours = "22:00-07:00" })
	used := func(time.Duration) time.Duration { return 3 * time.Hour }
	for name, tc := range map[string]struct {
		terms Terms
		q     Question
		want  Order
	}{
		"nothing changed":     {with(func(*Grant) {}), Question{}, Order{Do: Keep}},
		"withdrawn":           {Terms{Offers: true}, Question{}, Order{Stop, "the machine's owner alice has withdrawn what was granted to ben", DefaultGrace}},
		"offers nothing":      {Terms{}, Question{}, Order{Stop, "the machine offers nothing to the mesh any more", DefaultGrace}},
		"hours over":          {hours, Question{Now: at("07:00")}, Order{Stop, "the machine's hours for ben are over: 22:00-07:00 (policy.yaml:14)", DefaultGrace}},
		"within hours":        {hours, Question{Now: at("06:59")}, Order{Do: Keep}},
		"used up":             {with(func(g *Grant) { g.Use, g.Per = 3*time.Hour, 24*time.Hour }), Question{Held: Held{Used: used}}, Order{Stop, "the 3h0m0s of use in 24h0m0s that the machine grants ben are used up (policy.yaml:14)", DefaultGrace}},
		"too long":            {with(func(g *Grant) { g.Time = time.Minute }), Question{}, Order{Stop, "the machine grants ben runs of 1m0s at most (policy.yaml:14)", DefaultGrace}},
		"back: as by default": {idle(""), Question{Measured: back}, Order{Pause, "the machine is open to ben only after 10m0s without anybody at it; it has been 0s (policy.yaml:14)", 5 * time.Second}},
		"back: stop":          {idle(Stop), Question{Measured: back}, Order{Stop, "the machine is open to ben only after 10m0s without anybody at it; it has been 0s (policy.yaml:14)", 5 * time.Second}},
		"back: keep":          {idle(Keep), Question{Measured: back}, Order{Do: Keep}},
		"away":                {idle(Stop), Question{Measured: &Conditions{Idle: time.Hour}}, Order{Do: Keep}},
		"who knows":           {idle(Pause), Question{Measured: unknown}, Order{Pause, "the machine is open to ben only while it is idle, and that cannot be measured: no logind (policy.yaml:14)", 5 * time.Second}},
	} {
		tc.q.From, tc.q.Machine = Asker{Owner: "ben"}, "alice"
		if got := tc.terms.Going(tc.q, time.Hour); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
	own := Question{From: Asker{Owner: "alice"}, Machine: "alice"}
	if o := (Terms{Offers: true, Duty: Draining}).Going(own, time.Hour); o.Do != Keep {
		t.Errorf("draining: %+v", o)
	}
	if o := (Terms{Offers: true, Duty: Paused}).Going(own, time.Hour); o.Do != Pause {
		t.Errorf("paused: %+v", o)
	}
}
