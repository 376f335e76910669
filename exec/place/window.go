package place

import (
	"math"
	"time"
)

// Probes is how many machines are asked live before a run is placed on a view
// that is old: one more round trip, which gives back what the age has cost.
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

// ProbesFor returns how many of the machines of a window are asked. Where others
// place a run on two of five machines before their view is renewed, most of what
// the best ones have told is no longer so.
func ProbesFor(perSecond float64, age time.Duration, n int) int {
	if perSecond*age.Seconds() > 0.4*float64(n) {
		return min(n, 8*Probes)
	}
	return min(n, Probes)
}
