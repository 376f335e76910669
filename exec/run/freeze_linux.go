package run

import (
	"os"
	"path/filepath"
	"syscall"
)

// freeze stops everything that the run has started, until thaw: by the kernel
// where the run has a group of its own, else by a signal to each process.
func (g *group) freeze() error { return g.hold("1", syscall.SIGSTOP) }

func (g *group) thaw() error { return g.hold("0", syscall.SIGCONT) }

func (g *group) hold(frozen string, sig syscall.Signal) error {
	if g.cgroup != "" {
		return os.WriteFile(filepath.Join(g.cgroup, "cgroup.freeze"), []byte(frozen), 0)
	}
	for seen := map[int]bool{}; ; { // those that were started meanwhile too
		more := false
		for _, pid := range append(allPids(), g.pid) {
			if !seen[pid] && (pid == g.pid || g.has(pid)) {
				seen[pid], more = true, true
				_ = syscall.Kill(pid, sig)
			}
		}
		if !more {
			return nil
		}
	}
}
