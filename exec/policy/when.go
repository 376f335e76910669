package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Hours are the times of a week at which a machine is open, as an owner writes
// them: "22:00-07:00", "mon-fri 18:00-08:00, sat-sun". Hours that end before
// they begin go on into the next day; equal ones are the whole day. Empty is at
// any time.
type Hours string

// window is a part of Hours.
type window struct {
	days     [7]bool // by [time.Weekday]
	from, to int     // minutes after midnight
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// ParseHours reads hours and returns them in the form in which they are kept.
func ParseHours(s string) (Hours, error) {
	h := Hours(strings.Join(strings.Fields(strings.ToLower(s)), " "))
	if h == "" {
		return "", errHours(s)
	}
	_, err := h.windows()
	return h, err
}

func errHours(s string) error {
	return fmt.Errorf("%.40q are no hours: write them like 22:00-07:30, or mon-fri 18:00-08:00, sat-sun", s)
}

func (h Hours) windows() ([]window, error) {
	if h == "" {
		return nil, nil
	}
	var out []window
	for part := range strings.SplitSeq(string(h), ",") {
		w, ok := parseWindow(part)
		if !ok {
			return nil, errHours(string(h))
		}
		out = append(out, w)
	}
	return out, nil
}

func parseWindow(s string) (w window, ok bool) {
	fields := strings.Fields(s)
	if len(fields) == 0 || len(fields) > 2 {
		return w, false
	}
	if !strings.Contains(fields[0], ":") {
		if w.days, ok = parseDays(fields[0]); !ok {
			return w, false
		}
		fields = fields[1:]
	} else {
		w.days = [7]bool{true, true, true, true, true, true, true}
	}
	if len(fields) == 0 {
		return w, true // of whole days
	}
	if len(fields) > 1 {
		return w, false
	}
	a, b, ok := strings.Cut(fields[0], "-")
	if !ok {
		return w, false
	}
	from, err1 := time.Parse("15:04", a)
	to, err2 := time.Parse("15:04", b)
	w.from, w.to = from.Hour()*60+from.Minute(), to.Hour()*60+to.Minute()
	return w, errors.Join(err1, err2) == nil
}

// parseDays reads "mon" or "fri-mon".
func parseDays(s string) (days [7]bool, ok bool) {
	a, b, several := strings.Cut(s, "-")
	if !several {
		b = a
	}
	from, to := slices.Index(weekdays, a), slices.Index(weekdays, b)
	if from < 0 || to < 0 {
		return days, false
	}
	for d := from; ; d = (d + 1) % 7 {
		days[d] = true
		if d == to {
			return days, true
		}
	}
}

// Open reports whether now is within the hours. Hours that cannot be read never
// are.
func (h Hours) Open(now time.Time) bool {
	if h == "" {
		return true
	}
	list, err := h.windows()
	return err == nil && slices.ContainsFunc(list, func(w window) bool { return w.open(now) })
}

func (w *window) open(now time.Time) bool {
	m, today := now.Hour()*60+now.Minute(), int(now.Weekday())
	yesterday := (today + 6) % 7
	switch {
	case w.from == w.to:
		return w.days[today]
	case w.from < w.to:
		return w.days[today] && w.from <= m && m < w.to
	default:
		return w.days[today] && m >= w.from || w.days[yesterday] && m < w.to
	}
}

// Conditions are what a machine measures of its owner. What cannot be measured
// says why, and then what asks for it is refused.
type Conditions struct {
	Idle       time.Duration `json:"idle_ns"` // since anybody has touched it
	IdleWhy    string        `json:"idle_error,omitempty"`
	Battery    bool          `json:"battery"` // it lives on its battery
	BatteryWhy string        `json:"battery_error,omitempty"`
	GPU        string        `json:"gpu_in_use,omitempty"` // the device that another program uses; empty: none
}

// Measure reports whether the terms ask for [Conditions], which take time to
// measure.
func (t Terms) Measure() bool {
	return slices.ContainsFunc(t.Others, func(g Grant) bool { return g.Idle > 0 || g.Mains || g.GPUFree })
}

// present returns why the owner is there, as part of a sentence; empty where the
// grant may be used.
func (g *Grant) present(c *Conditions) string {
	switch {
	case g.Idle > 0 && c.IdleWhy != "":
		return "only while it is idle, and that cannot be measured: " + c.IdleWhy
	case g.Idle > 0 && c.Idle < g.Idle:
		return fmt.Sprintf("only after %v without anybody at it; it has been %v", g.Idle, c.Idle.Round(time.Second))
	case g.Mains && c.BatteryWhy != "":
		return "only on AC power, and that cannot be measured: " + c.BatteryWhy
	case g.Mains && c.Battery:
		return "only on AC power; it runs on its battery"
	}
	return ""
}

// when checks whether it is a time for it.
func (a *answer) when(q *Question) {
	g, who := a.grant, q.From.Owner
	if !g.Hours.Open(q.Now) {
		a.refuse(true, 0, 0, "is open to %s at these hours: %s", who, g.Hours)
	}
	if used := q.Held.used(g); g.Use > 0 && used >= g.Use {
		a.refuse(true, uint64(g.Use), uint64(used), "grants %s %v of use in %v, which are used up", who, g.Use, g.Per)
	}
	if q.Measured == nil {
		return
	}
	if why := g.present(q.Measured); why != "" {
		a.refuse(true, 0, 0, "is open to %s %s", who, why)
	}
	if g.GPUFree && q.Measured.GPU != "" {
		a.refuse(true, 0, 0, "is open to %s only while no other program uses a GPU; one uses %s", who, q.Measured.GPU)
	}
}

func (h *Held) used(g *Grant) time.Duration {
	if h.Used == nil || g.Use == 0 {
		return 0
	}
	return h.Used(g.Per)
}
