//go:build race

package meshtest

// Race says that the race detector is on. Key exchanges then take ten times as
// long and more, and there can be 8,128 goroutines.
const Race = true
