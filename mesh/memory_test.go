package mesh

import (
	"testing"
	"testing/synctest"
	"time"
)

// Memory is given back once after each load, and never during one.
func TestTrimmer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		freed := 0
		m := newTrimmer(func() { freed++ })
		defer m.stop()
		load := func(seconds, packets int) {
			for range seconds {
				m.saw(packets)
				time.Sleep(time.Second)
				synctest.Wait()
			}
		}
		for _, step := range []struct {
			what             string
			seconds, packets int
			want             int
		}{
			{"nothing", 60, 0, 0},
			{"a trickle", 60, 10, 0},
			{"a load", 60, 10 * busy, 0},
			{"what comes after it", 60, 0, 1},
			{"a long time after it", 3600, 0, 1},
			{"a load in one batch", 1, busy, 1},
			{"what comes after that", 60, 10, 2},
		} {
			if load(step.seconds, step.packets); freed != step.want {
				t.Errorf("after %s memory has been given back %d times, want %d", step.what, freed, step.want)
			}
		}
	})
}
