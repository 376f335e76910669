package task

import "testing"

func TestGaps(t *testing.T) {
	out := func(attempt int, offset int64, data string) *Event {
		return &Event{Type: EventOutput, Attempt: attempt, Offset: offset, Data: data}
	}
	of := func(rank int, e *Event) *Event { e.Rank = &rank; return e }
	for name, test := range map[string]struct {
		joined bool
		events []*Event
		want   []int64
	}{
		"none":           {false, []*Event{out(1, 0, "abc"), {Type: EventNote}, out(1, 3, "d"), out(1, 4, "")}, []int64{0, 0, 0, 0}},
		"some":           {false, []*Event{out(1, 0, "abc"), out(1, 10, "d"), out(1, 11, "e"), out(1, 20, "f")}, []int64{0, 7, 0, 8}},
		"the beginning":  {false, []*Event{out(1, 5, "abc"), out(1, 8, "d")}, []int64{5, 0}},
		"joined":         {true, []*Event{out(1, 5, "abc"), out(1, 8, "d"), out(1, 10, "e")}, []int64{0, 0, 1}},
		"again":          {true, []*Event{out(1, 5, "abc"), out(2, 0, "d"), out(2, 2, "e"), out(3, 1, "f")}, []int64{0, 0, 1, 1}},
		"no offsets":     {false, []*Event{out(1, 0, "abc"), out(1, 0, "d"), out(1, 0, "e")}, []int64{0, 0, 0}},
		"offsets of now": {false, []*Event{out(1, 0, "abc"), out(1, 0, "d"), out(1, 90, "e"), out(1, 95, "f")}, []int64{0, 0, 0, 4}},
		"ranks":          {false, []*Event{of(0, out(1, 0, "abc")), of(1, out(1, 0, "a")), of(0, out(1, 3, "d")), of(1, out(1, 5, "e"))}, []int64{0, 0, 0, 4}},
	} {
		g := Gaps{Joined: test.joined}
		for i, e := range test.events {
			if got := g.Before(e); got != test.want[i] {
				t.Errorf("%s: %d bytes before event %d, want %d", name, got, i, test.want[i])
			}
		}
	}
	if got := Dropped(12_900_000); got != "… 12.3 MiB dropped …" {
		t.Error(got)
	}
}
