package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now returns the time since the machine was started, its sleep included. Go's
// own monotonic clock stops in suspend.
func Now() time.Duration { return clock(unix.CLOCK_BOOTTIME) }
