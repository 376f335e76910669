package mesh

import (
	"testing"

	"github.com/balanceai/balance/mesh/identity"
)

// A relay's load is what its processors have to do, or what one sender asks for
// of the rate that it has, whichever is more. It is that sender's alone.
func TestRelayLoad(t *testing.T) {
	const perSecond = 1 << 20
	busy := -1 // not measured
	c := newCarrier(func(identity.ID, identity.ID) (int, bool) { return perSecond, true }, func() int { return busy })
	from, other, to := &peer{id: identity.ID{1}}, &peer{id: identity.ID{2}}, &peer{id: identity.ID{3}}
	if got := c.load(from); got != 0 {
		t.Errorf("before all: %d", got)
	}
	ask := func(n int) {
		for range n {
			c.take(from, to, [][]byte{make([]byte, perSecond/16)})
		}
	}
	ask(4)
	if got := c.load(from); got < 255/4-1 || got >= crowded {
		t.Errorf("at a quarter of the rate: %d", got)
	}
	ask(32) // most is refused, and is asked for nevertheless
	if got := c.load(from); got != 255 {
		t.Errorf("beyond the rate: %d", got)
	}
	if got := c.load(other); got != 0 {
		t.Errorf("of another sender: %d", got)
	}
	busy = 50
	if got := c.load(other); got != 127 {
		t.Errorf("with half of the processors: %d", got)
	}
}
