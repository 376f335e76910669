package place

import (
	"math"
	"time"
)

// Probes is how many machines at least are asked live before a run is placed on a
// view that is old: one more round trip, which gives back what the age has cost.
const Probes = 4

// Window returns from how many of the best of n machines that fit those to be
// asked live are drawn. Who always takes the best one meets all others there,
// who see the same: the window grows with the number of runs that others place
// while a view is as old as this one is, perSecond being how many that are in
// the whole mesh.
//
// That half of that number is enough, and that a fixed window is not, was
// measured by simulation: see docs/placement.md.
func Window(perSecond float64, age time.Duration, n int) int {
	others := perSecond * age.Seconds()
	if !(others < math.MaxInt32) {
		return n
	}
	return min(n, Probes+int(others/2))
}

// mostProbes bounds how many are asked.
const mostProbes = 8 * Probes

// ProbesFor returns how many of the machines of a window are asked: the best of a
// few is the worse the larger the window is that they are drawn from, and the more
// of what it has told is no longer so.
func ProbesFor(perSecond float64, age time.Duration, n int) int {
	return min(n, Probes+int(min(perSecond*age.Seconds()/12, mostProbes-Probes)))
}
