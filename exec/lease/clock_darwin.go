package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now returns the time since the machine was started, its sleep included:
// CLOCK_MONOTONIC_RAW of Darwin is mach_continuous_time, where CLOCK_UPTIME_RAW
// stops in sleep. See clock_gettime(3).
func Now() time.Duration { return clock(unix.CLOCK_MONOTONIC_RAW) }
