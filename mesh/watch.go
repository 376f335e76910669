package mesh

import "time"

// A machine that slept is noticed by its two clocks: the one that tells the time
// goes on, the one that only goes forward stands still.
const (
	wakeCheck = 5 * time.Second
	wakeGap   = 10 * time.Second
)

// watchNetwork has peers told when this node's network changes or the machine
// wakes from sleep, until the tunnel closes. Without news from the system, only
// sleep is noticed.
func (t *tunnel) watchNetwork() {
	events, err := networkEvents(t.done)
	if err != nil {
		t.log.Warn("a change of network will be noticed late", "error", err)
	}
	state, wall := networkState(), time.Now()
	tick := time.NewTicker(wakeCheck)
	defer tick.Stop()
	for {
		slept := false
		select {
		case <-t.done:
			if events != nil {
				for range events { // until its end
				}
			}
			return
		case _, open := <-events:
			if !open {
				events = nil
			}
		case <-tick.C:
			now := time.Now()
			slept = now.Round(0).Sub(wall.Round(0))-now.Sub(wall) > wakeGap
			wall = now
		}
		now := networkState()
		if now == state && !slept {
			continue
		}
		t.log.Info("the network changed", "slept", slept)
		state = now
		t.networkChanged()
	}
}
