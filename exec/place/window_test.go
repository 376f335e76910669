package place

import (
	"math"
	"testing"
	"time"
)

func TestWindow(t *testing.T) {
	for _, tc := range []struct {
		perSecond      float64
		age            time.Duration
		n              int
		window, probes int
	}{
		{0, time.Second, 1000, Probes, Probes},
		{5, time.Second, 1000, Probes + 2, Probes},
		{100, time.Second, 1000, Probes + 50, Probes + 8},
		{100, 5 * time.Second, 1000, Probes + 250, mostProbes},
		{100, time.Second, 3, 3, 3},
		{math.MaxFloat64, time.Hour, 1000, 1000, mostProbes},
	} {
		if got := Window(tc.perSecond, tc.age, tc.n); got != tc.window {
			t.Errorf("%+v: a window of %d", tc, got)
		}
		if got := ProbesFor(tc.perSecond, tc.age, tc.n); got != tc.probes {
			t.Errorf("%+v: %d probes", tc, got)
		}
	}
}
