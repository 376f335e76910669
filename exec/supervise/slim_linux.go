package supervise

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// slim gives back the pages of the program's file that the start of the runtime
// has looked at, which checks tables of the whole program. The few that are in
// use come back by themselves.
func slim() {
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, r := range unchanged(string(b)) {
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, r.from, r.to-r.from, syscall.MADV_DONTNEED)
	}
}

type addresses struct{ from, to uintptr }

// unchanged reads proc_pid_smaps(5) and returns what is as it is in a file: it
// is of one, cannot be written to, and has no page of this process's own, as
// what the loader has relocated has.
func unchanged(smaps string) (out []addresses) {
	var now addresses
	ok := false
	for line := range strings.Lines(smaps) {
		fields := strings.Fields(line)
		if len(fields) >= 5 && strings.Contains(fields[0], "-") {
			low, high, _ := strings.Cut(fields[0], "-")
			from, err1 := strconv.ParseUint(low, 16, 64)
			to, err2 := strconv.ParseUint(high, 16, 64)
			now = addresses{uintptr(from), uintptr(to)}
			ok = err1 == nil && err2 == nil && len(fields) > 5 && strings.HasPrefix(fields[5], "/") && strings.HasPrefix(fields[1], "r-") && strings.HasSuffix(fields[1], "p")
		}
		if ok && len(fields) == 3 && fields[0] == "Anonymous:" && fields[1] == "0" {
			out = append(out, now)
		}
	}
	return out
}
