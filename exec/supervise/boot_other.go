//go:build !linux

package supervise

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// Boot names the time since the machine was started: another name, and no
// process of then is alive.
func Boot() string {
	t, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return ""
	}
	return strconv.FormatInt(t.Sec, 10)
}
