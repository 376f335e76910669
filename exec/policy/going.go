package policy

import (
	"fmt"
	"time"
)

// What the owner has told a machine to do for now.
const (
	Draining = "draining" // what runs may end; nothing new comes
	Paused   = "paused"   // what runs is frozen; nothing new comes
)

func offDuty(duty string) string {
	if duty == Paused {
		return "is paused by its owner"
	}
	return "is draining: its owner lets what runs end, and takes nothing new"
}

// What is done to a run.
const (
	Keep  = "keep"
	Pause = "pause"
	Stop  = "stop"
)

// Grace is the time between SIGTERM and SIGKILL of a run that is stopped.
const (
	DefaultGrace = 10 * time.Second
	MaxGrace     = 30 * time.Second
)

// Order is what is to be done to a run that is going.
type Order struct {
	Do     string // [Keep], [Pause] or [Stop]
	Reason string // not of Keep
	Grace  time.Duration
}

// Going says what is to be done, now, to a run that has been allowed: the owner
// may have changed the terms since, its hours may be over, or the owner may be
// back. What it needs and holds is not asked again. age is how long it has been
// going.
func (t Terms) Going(q Question, age time.Duration) Order {
	if q.From.Owner != q.Machine {
		g, ok := t.Grant(q.From)
		switch {
		case !t.Offers:
			return Order{Stop, "the machine offers nothing to the mesh any more", DefaultGrace}
		case !ok:
			return Order{Stop, fmt.Sprintf("the machine's owner %s has withdrawn what was granted to %s", q.Machine, q.From.Owner), DefaultGrace}
		}
		if o := g.going(&q, age); o.Do == Stop || o.Do == Pause && t.Duty != Paused {
			return o
		}
	}
	if t.Duty == Paused {
		return Order{Do: Pause, Reason: "the machine " + offDuty(Paused)}
	}
	return Order{Do: Keep}
}

func (g *Grant) going(q *Question, age time.Duration) Order {
	grace := g.Grace
	if grace == 0 {
		grace = DefaultGrace
	}
	stop := func(format string, args ...any) Order {
		return Order{Stop, fmt.Sprintf(format, args...) + g.at(), grace}
	}
	who := q.From.Owner
	switch {
	case !g.Hours.Open(q.Now):
		return stop("the machine's hours for %s are over: %s", who, g.Hours)
	case g.Time > 0 && age > g.Time:
		return stop("the machine grants %s runs of %v at most", who, g.Time)
	case g.Use > 0 && q.Held.used(g) >= g.Use:
		return stop("the %v of use in %v that the machine grants %s are used up", g.Use, g.Per, who)
	case q.Measured == nil:
		return Order{Do: Keep}
	}
	why := g.present(q.Measured)
	if why == "" || g.Return == Keep {
		return Order{Do: Keep}
	}
	o := stop("the machine is open to %s %s", who, why)
	if g.Return != Stop {
		o.Do = Pause // what is not lost can be regretted
	}
	return o
}
