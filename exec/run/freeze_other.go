//go:build !linux

package run

import "syscall"

// freeze stops the processes of the group, until thaw.
func (g *group) freeze() error { return syscall.Kill(-g.pid, syscall.SIGSTOP) }

func (g *group) thaw() error { return syscall.Kill(-g.pid, syscall.SIGCONT) }
