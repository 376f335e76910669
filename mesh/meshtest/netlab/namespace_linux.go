package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace. It is held by a descriptor of it.
type namespace struct{ file *os.File }

func newNamespace() (*namespace, error) {
	ns := &namespace{}
	err := aside(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		ns.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	// An IPv6 address is there at once, and stays where a cable is pulled.
	ns.sysctl("net/ipv6/conf/default/accept_dad", "0")
	ns.sysctl("net/ipv6/conf/default/keep_addr_on_down", "1")
	ns.sysctl("net/ipv6/conf/all/keep_addr_on_down", "1")
	// Who asks for a neighbour in the moment in which a cable comes up asks again
	// soon, and not after a second.
	ns.sysctl("net/ipv4/neigh/default/retrans_time_ms", "50")
	ns.sysctl("net/ipv6/neigh/default/retrans_time_ms", "50")
	ns.sysctl("net/bridge/bridge-nf-call-iptables", "0")
	ns.sysctl("net/bridge/bridge-nf-call-ip6tables", "0")
	return ns, ns.ip("link set lo up")
}

// aside calls f, which may put its thread into another network namespace. The
// thread comes back, or is given up.
func aside(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer own.Close()
		err = f()
		back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
		if back == nil {
			runtime.UnlockOSThread()
		}
		result <- errors.Join(err, back)
	}()
	return <-result
}

// do calls f in the namespace. A socket that f opens and a process that it
// starts belong there for good.
func (ns *namespace) do(f func() error) error {
	return aside(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// path names the namespace to another process.
func (ns *namespace) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
}

// ip runs commands of ip(8), of one line each.
func (ns *namespace) ip(commands ...string) error {
	return ns.tool(strings.Join(commands, "\n"), "ip", "-batch", "-")
}

// nft loads a file of nft(8), whole or not at all.
func (ns *namespace) nft(rules string) error { return ns.tool(rules, "nft", "-f", "-") }

func (ns *namespace) tool(input, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.do(cmd.Run); err != nil {
		return fmt.Errorf("%s: %w: %s\n%s", name, err, strings.TrimSpace(out.String()), input)
	}
	return nil
}

// sysctl sets a variable where the kernel has it.
func (ns *namespace) sysctl(name, value string) {
	err := ns.do(func() error { return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(err) // root may set all variables of a new namespace
	}
}
