package tui

import (
	"math"
	"strings"

	"github.com/balanceai/balance/exec/fleet"
)

// unknown is a value that was not measured. It is drawn as nothing, where zero
// is drawn as a line at the bottom.
const unknown = fleet.Unknown

// heat says how much a percentage deserves attention.
func heat(percent float64) style {
	switch percent = math.Round(percent); { // as it is shown
	case percent >= 92:
		return hot
	case percent >= 80:
		return warm
	default:
		return accent
	}
}

// bar returns a horizontal bar of w cells as its filled part and the rest.
func bar(percent float64, w int, ascii bool) (filled, rest string) {
	if percent < 0 || w <= 0 {
		return "", ""
	}
	halves := int(math.Round(min(percent, 100) / 100 * float64(2*w)))
	if percent > 0 {
		halves = max(halves, 1)
	}
	if ascii {
		n := (halves + 1) / 2
		return strings.Repeat("#", n), strings.Repeat("-", w-n)
	}
	filled = strings.Repeat("━", halves/2)
	if halves%2 == 1 {
		filled += "╸"
	}
	return filled, strings.Repeat("─", w-(halves+1)/2)
}

// The dots of a braille character (U+2800 plus a bit for each dot), filled from
// the bottom, for its left and its right column.
var (
	leftDots  = [5]rune{0, 0x40, 0x44, 0x46, 0x47}
	rightDots = [5]rune{0, 0x80, 0xa0, 0xb0, 0xb8}
)

// shades are the same heights where only ASCII can be drawn.
const shades = " .:-=+*#"

// perCell is how many values share a cell of a chart.
func perCell(ascii bool) int {
	if ascii {
		return 1
	}
	return 2
}

// heatChart is an areaChart in colour: what of a value is above the limits of
// [heat] stands out, and no more of it.
func heatChart(values []float64, w, h int, ascii, live bool) []text {
	per := perCell(ascii)
	hottest := make([]float64, w)
	for i := range hottest {
		hottest[i] = unknown
		for at := len(values) - (w-i)*per; at < len(values)-(w-i-1)*per; at++ {
			if at >= 0 {
				hottest[i] = max(hottest[i], values[at])
			}
		}
	}
	out := make([]text, h)
	for y, row := range areaChart(values, w, h, ascii) {
		top := 100 * float64(h-y) / float64(h) // what a full cell of this row stands for
		style := func(i int) style {
			if !live {
				return dim
			}
			return heat(min(hottest[i], top))
		}
		cells, start := []rune(row), 0
		for i := 1; i <= w; i++ {
			if i == w || style(i) != style(start) {
				out[y] = append(out[y], span{style(start), string(cells[start:i])})
				start = i
			}
		}
	}
	return out
}

// areaChart draws the newest percentages as h rows of w cells, the top row
// first, the newest value on the right.
func areaChart(values []float64, w, h int, ascii bool) []string {
	per := perCell(ascii)
	dots := 4
	if ascii {
		dots = len(shades) - 1
	}
	values = values[max(0, len(values)-w*per):]
	blank := w - (len(values)+per-1)/per
	rows := make([]string, h)
	for y := range h {
		base := (h - 1 - y) * dots
		row := make([]rune, 0, w)
		for range blank {
			row = append(row, ' ')
		}
		for i := -(len(values) % per); i < len(values); i += per {
			left := dotsIn(values, i, base, dots, h)
			if ascii {
				row = append(row, rune(shades[left]))
				continue
			}
			row = append(row, 0x2800+leftDots[left]+rightDots[dotsIn(values, i+1, base, dots, h)])
		}
		rows[y] = string(row)
	}
	return rows
}

// stretch spreads the newest of values, of which there can be most, over n
// places.
func stretch(values []float64, most, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		at := len(values) - most + i*most/n
		out[i] = unknown
		if at >= 0 {
			out[i] = values[at]
		}
	}
	return out
}

// dotsIn returns how many dots of a row that starts at base are filled for one
// value. A known value fills at least the lowest dot of the chart.
func dotsIn(values []float64, i, base, dots, h int) int {
	if i < 0 || values[i] < 0 {
		return 0
	}
	full := max(1, int(math.Round(min(values[i], 100)/100*float64(h*dots))))
	return min(max(full-base, 0), dots)
}
