//go:build race

package meshtest

// Race says that the race detector is on. A node takes 65 MB then, and key
// exchanges ten times as long.
const Race = true
