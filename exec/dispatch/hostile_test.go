package dispatch

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// A machine cannot stop a run with the length of its refusal.
func TestEndlessRefusal(t *testing.T) {
	l := newLab(t)
	for range 1000 {
		l.hydra.refusal = append(l.hydra.refusal, task.Reason{Rule: "no", Text: strings.Repeat("né", 600)})
	}
	l.byID[l.hydra.id()] = refuser{l.hydra}
	got := brief(l.end(l.submit(bare())))
	if !strings.HasSuffix(got, "succeeded") || len(got) > 30_000 {
		t.Errorf("got %d bytes: %.100s", len(got), got)
	}
}

// refuser refuses without a record, which could not hold its reasons.
type refuser struct{ *machine }

func (r refuser) Start(context.Context, task.Order, func(*task.Event) error) error {
	return &task.Refusal{Reasons: r.refusal}
}

// A machine cannot stop everybody's runs with the length of its offer.
func TestEndlessOffer(t *testing.T) {
	var big fleet.Node
	l := newLab(t, func(c *Config) {
		view := c.View
		c.View = func() []fleet.Node { return append(view(), big) }
	})
	m := newMachine(9, "big")
	l.byID[m.id()] = m
	big = m.node(4)
	big.Offer.GPUs = []fleet.Device{{UUID: strings.Repeat("x", wire.MaxRecord), Model: "x", VRAM: 1}}
	spec := bare()
	spec.Needs = task.Needs{CPU: task.Core, GPUs: 1}
	if got := brief(l.end(l.submit(spec))); !strings.HasPrefix(got, "placed@big") {
		t.Errorf("got %s", got)
	}
}

// What a machine makes up does not reach the user.
func TestHostileMachine(t *testing.T) {
	forged := func(author *memLedger, topic, kind string, record any) []byte {
		entries, err := author.Append(t.Context(), task.Draft{Topic: topic, Kind: kind, Record: record})
		if err != nil {
			t.Fatal(err)
		}
		return entries[0].Encode()
	}
	for name, event := range map[string]func(l *lab, run string) task.Event{
		"finish without account": func(*lab, string) task.Event { return task.Event{Type: task.EventFinished} },
		"another's account": func(l *lab, run string) task.Event {
			b := forged(newLedger(99), run, task.KindFinished, task.Finished{Attempt: 1, State: task.Succeeded})
			return task.Event{Type: task.EventFinished, Entries: [][]byte{b}}
		},
		"account of another run": func(l *lab, run string) task.Event {
			b := forged(l.hydra.ledger, "r-bbbbbbbbbbbbbbbb", task.KindFinished, task.Finished{Attempt: 1, State: task.Succeeded})
			return task.Event{Type: task.EventFinished, Entries: [][]byte{b}}
		},
		"account of another attempt": func(l *lab, run string) task.Event {
			b := forged(l.hydra.ledger, run, task.KindFinished, task.Finished{Attempt: 2, State: task.Succeeded})
			return task.Event{Type: task.EventFinished, Entries: [][]byte{b}}
		},
		"account without an end": func(l *lab, run string) task.Event {
			b := forged(l.hydra.ledger, run, task.KindFinished, task.Finished{Attempt: 1, State: task.Unplaced})
			return task.Event{Type: task.EventFinished, Entries: [][]byte{b}}
		},
		"a submit of its own": func(l *lab, run string) task.Event {
			b := forged(l.hydra.ledger, run, task.KindSubmit, task.Submit{Spec: bare()})
			return task.Event{Type: task.EventOutput, Entries: [][]byte{b}}
		},
		"garbage": func(*lab, string) task.Event { return task.Event{Type: task.EventOutput, Entries: [][]byte{{1}}} },
		"many entries": func(*lab, string) task.Event {
			return task.Event{Type: task.EventOutput, Entries: make([][]byte, 1000)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.hydra.script = (*machine).start
			id := l.submit(bare())
			l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
			l.hydra.emit(id, event(l, id))
			requests := func() int { l.hydra.mu.Lock(); defer l.hydra.mu.Unlock(); return l.hydra.requests }
			before := requests()
			l.eventually("asked again", func() bool { return requests() >= before+3 })
			if st := l.status(id); st.State != task.Running || st.Receipt {
				t.Errorf("status %+v", st)
			}
			if got := brief(l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })); got != "placed@hydra started@hydra" {
				t.Errorf("got %s", got)
			}
		})
	}
}

// Events are rewritten in this node's words.
func TestEventsAreTheSubmitters(t *testing.T) {
	l := newLab(t)
	l.hydra.script = func(m *machine, run string) {
		m.start(run)
		m.emit(run, task.Event{Type: task.EventOutput, Node: "evil", Attempt: 9, Stream: "\x1b[2J", Data: "x", State: task.Succeeded, Message: "m", Source: 77})
		m.emit(run, task.Event{Type: task.EventPlaced, Node: "evil"})
		m.emit(run, task.Event{Type: "from the future"})
		m.emit(run, task.Event{Type: task.EventNote, Message: strings.Repeat("m", 10_000)})
		m.output(run, strings.Repeat("\x01", 900_000))
		m.finish(run, task.Finished{State: task.Succeeded})
	}
	events := l.end(l.submit(bare()))
	if len(events) != 6 || !strings.Contains(events[4].Message, "sends more than the run may keep") {
		t.Fatalf("got %s", brief(events))
	}
	out := events[2]
	if out.Node != "hydra" || out.Attempt != 1 || out.Stream != task.Stdout || out.State != "" || out.Message != "" {
		t.Errorf("output %+v", out)
	}
	if len(events[3].Message) != maxMessage {
		t.Errorf("note of %d bytes", len(events[3].Message))
	}
}

// However much a machine sends, this node keeps the beginning and the newest part.
func TestOutputIsBounded(t *testing.T) {
	l := newLab(t)
	const sent = 100
	l.hydra.script = func(m *machine, run string) {
		m.start(run)
		for i := range sent {
			m.emit(run, task.Event{Type: task.EventOutput, Stream: task.Stdout, Data: fmt.Sprintf("%099d\n", i), Offset: int64(i) * 100})
		}
		m.emit(run, task.Event{Type: task.EventNote, Message: strings.Repeat("n", 1000)})
		m.emit(run, task.Event{Type: task.EventNote, Message: "more"})
		m.output(run, "last\n")
		m.finish(run, task.Finished{State: task.Succeeded})
	}
	gate, asked := make(chan struct{}), make(chan struct{})
	l.byID[l.hydra.id()] = &gated{machine: l.hydra, asked: asked, gate: gate}
	id := l.submit(bare())
	<-asked
	l.d.active(id).room = room{part: 5 * (eventCost + 100), left: 10 * (eventCost + 100), other: 1000}
	close(gate)
	var gaps task.Gaps
	var missing, came int64
	var got []*task.Event
	l.eventually("the end", func() bool { return l.status(id).State == task.Succeeded })
	err := l.d.Events(t.Context(), id, 0, true, func(e *task.Event) error { got = append(got, e); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range got {
		missing += gaps.Before(e)
		came += int64(len(e.Data))
		if e.Part {
			t.Errorf("event %d tells what is between nodes", e.Seq)
		}
	}
	if brief := brief(got); came+missing != 100*sent+5 || came < 30*100 || came > 42*100 ||
		!strings.Contains(brief, "(hydra sends more than the run may keep: the rest is left out)") || strings.Contains(brief, "more)") || !strings.HasSuffix(brief, "succeeded") {
		t.Errorf("%d bytes came, %d are missing: %s", came, missing, brief)
	}
}
