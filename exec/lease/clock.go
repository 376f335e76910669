package lease

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

func clock(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic(fmt.Sprintf("clock %d: %v", id, err)) // it has been there since Linux 2.6.39 and macOS 10.12
	}
	return time.Duration(ts.Nano())
}
