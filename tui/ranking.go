package tui

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// rankingText shows what placement says of every machine: the best with the
// terms of its score, the others that fit in one line, those that do not with
// every reason.
func (m *model) rankingText(r task.Ranking, w int) []text {
	names := 8
	for i := range r {
		names = min(max(names, width(clean(r[i].Name))), 20)
	}
	var lines []text
	for i := range r {
		v := &r[i]
		if i > 0 && (v.Fits || r[i-1].Fits) {
			lines = append(lines, nil)
		}
		if v.Fits {
			lines = append(lines, m.fitting(v, i, names, w)...)
		} else {
			lines = append(lines, m.refused(v, names, w)...)
		}
	}
	return lines
}

// conclusion says how far the best machine is ahead, or what would help where
// none fits.
func (m *model) conclusion(r task.Ranking, w int) []text {
	last := r.Lead()
	for i := range r {
		last = cmp.Or(last, r[i].Nearest)
	}
	if last == "" {
		return nil
	}
	lines := []text{nil}
	for _, part := range wrapWords(clean(last), w) {
		lines = append(lines, text{{dim, part}})
	}
	return lines
}

func (m *model) fitting(v *task.Verdict, rank, names, w int) []text {
	extra := clean(v.Owner)
	if gpus := m.deviceNumbers(v); gpus != "" {
		extra += "  " + gpus
	}
	if v.AgeMS > 0 {
		extra += "  as of " + age(time.Duration(v.AgeMS)*time.Millisecond)
	}
	st := plain
	if rank == 0 {
		st = strong
	}
	lines := []text{{
		{accent, m.th.glyph.yes + " "},
		{st, padRight(clean(v.Name), names)},
		{accent, fmt.Sprintf("%5d  ", v.Score)},
		{dim, extra},
	}}
	if rank > 0 {
		parts := make([]string, len(v.Parts))
		for i, p := range v.Parts {
			parts[i] = p.Text
		}
		return append(lines, text{{dim, "  " + clean(strings.Join(parts, "; "))}})
	}
	for _, p := range v.Parts {
		s := clean(p.Text)
		if p.Name != "" && !strings.Contains(strings.ToLower(s), strings.ToLower(p.Name)) {
			s = clean(p.Name) + ": " + s
		}
		points := fmt.Sprintf("%+d", p.Points)
		lines = append(lines, text{{dim, "  " + points + spaces(max(1, 6-len(points)))}, {plain, s}})
	}
	return lines
}

// deviceNumbers says which GPUs of a machine would be used.
func (m *model) deviceNumbers(v *task.Verdict) string {
	mc := m.byID[v.Node]
	if mc == nil || mc.Offer == nil || len(mc.Offer.GPUs) < 2 {
		return ""
	}
	var out []string
	for i, d := range mc.Offer.GPUs {
		for _, uuid := range v.Devices {
			if uuid == d.UUID {
				out = append(out, fmt.Sprint(i))
			}
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "GPU " + strings.Join(out, ", ")
}

func (m *model) refused(v *task.Verdict, names, w int) []text {
	lead := m.th.glyph.no + " " + padRight(clean(v.Name), names) + "  "
	var lines []text
	for _, r := range v.Reasons {
		s := clean(r.Text)
		if r.Ever {
			s += " (not now)"
		}
		for _, part := range wrapWords(s, w-width(lead)) {
			lines = append(lines, text{{dim, lead}, {plain, part}})
			lead = spaces(width(lead))
		}
	}
	if lines == nil {
		lines = []text{{{dim, lead + "does not fit"}}}
	}
	return lines
}

// whyText shows how every attempt of a run got its machine, the newest first.
func (m *model) whyText(attempts []Attempt, w int) []text {
	var lines []text
	for _, a := range slices.Backward(attempts) {
		if lines != nil {
			lines = append(lines, nil, nil)
		}
		where := "no machine fits"
		switch {
		case a.Waits:
			where = "waits for a machine"
		case a.Node != "":
			where = "went to " + clean(a.Node)
		}
		if len(attempts) > 1 {
			where = fmt.Sprintf("attempt %d %s", a.Attempt, where)
		}
		lines = append(lines, text{{strong, where}})
		for _, r := range a.Refusal {
			for _, part := range wrapWords("which refused: "+clean(r.Text), w) {
				lines = append(lines, text{{warm, part}})
			}
		}
		lines = append(append(lines, nil), m.rankingText(a.Ranking, w)...)
	}
	return lines
}
