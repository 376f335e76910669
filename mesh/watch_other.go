//go:build !linux

package mesh

import (
	"net"
	"slices"
	"strings"
	"time"
)

const lookAgain = 2 * time.Second

// networkEvents returns a channel that has something in it now and then: where
// the system is not asked to tell of changes, they are looked for.
func networkEvents(done <-chan struct{}) (<-chan struct{}, error) {
	events := make(chan struct{}, 1)
	go func() {
		defer close(events)
		tick := time.NewTicker(lookAgain)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			select {
			case events <- struct{}{}:
			default:
			}
		}
	}()
	return events, nil
}

// networkState returns what of the host's network matters to paths, as text to
// compare: addresses of links that are up.
func networkState() string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return ""
	}
	var state []string
	for _, i := range interfaces {
		if i.Flags&net.FlagRunning == 0 || inner(i.Name) {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it is just going away
		}
		for _, a := range addrs {
			state = append(state, i.Name+" "+a.String())
		}
	}
	slices.Sort(state)
	return strings.Join(state, "\n")
}
