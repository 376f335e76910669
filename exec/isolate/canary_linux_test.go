package isolate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/exec/isolate/inside"
)

// The test binary is also the program that tries to get out, when this is set.
const modeVar = "ISOLATE_TEST_MODE"

// secret is what nobody inside may ever see.
const secret = "canary-5f2b9c"

// target is what a program that wants out tries to reach.
type target struct {
	Files   []string
	Sockets []string // of the file system, and with @ abstract ones
	Net     []string // network and address
}

// attempt is the program that tries to get out. It prints what it has reached.
func attempt(mode string) {
	var reached []string
	var t target
	if err := json.Unmarshal([]byte(os.Getenv("TARGET")), &t); err != nil {
		panic(err)
	}
	switch mode {
	case "files":
		reached = t.files()
	case "net":
		reached = t.net()
	case "calls":
		reached = forbidden()
	}
	if err := json.NewEncoder(os.Stdout).Encode(reached); err != nil {
		panic(err)
	}
}

// files tries to read each file by its name and through other processes, and
// looks for the secret in all that can be seen.
func (t *target) files() (reached []string) {
	roots := []string{""}
	for _, pattern := range []string{"/proc/[0-9]*/root", "/proc/[0-9]*/cwd"} {
		found, _ := filepath.Glob(pattern) // the pattern is valid
		roots = append(roots, found...)
	}
	for _, path := range t.Files {
		if slices.ContainsFunc(roots, func(root string) bool { return holds(root + path) }) {
			reached = append(reached, path)
		}
	}
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		if holds(path) {
			reached = append(reached, path)
		}
	}
	for _, dir := range []string{"/home", "/root", "/run", "/var", "/tmp", "/etc", "/work", "/dev", "/mnt", "/srv", "/opt", "/media"} {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.Contains(path, "canary") && holds(path) && !slices.Contains(reached, path) {
				reached = append(reached, path)
			}
			return nil
		})
	}
	return reached
}

func holds(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	n, _ := f.Read(b)
	return strings.Contains(string(b[:n]), secret)
}

// net tries to be heard at each address.
func (t *target) net() (reached []string) {
	for _, s := range t.Sockets {
		if c, err := net.Dial("unix", s); err == nil {
			c.Close()
			reached = append(reached, s)
		}
	}
	for _, s := range t.Net {
		network, addr, _ := strings.Cut(s, " ")
		if heard(network, addr) {
			reached = append(reached, s)
		}
	}
	return reached
}

// heard reports whether a packet can be sent that somebody may answer.
func heard(network, addr string) bool {
	c, err := net.DialTimeout(network, addr, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	if network == "tcp" {
		return true
	}
	if _, err := c.Write([]byte("ping")); err != nil {
		return false
	}
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	_, err = c.Read(make([]byte, 16))
	var timeout net.Error
	return err == nil || errors.As(err, &timeout) && timeout.Timeout() && !net.ParseIP(strings.Trim(host(addr), "[]")).IsLoopback()
}

func host(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return addr
}

// forbidden tries the system calls that lead out, and returns those that work.
func forbidden() (worked []string) {
	zero := make([]byte, 256)
	p := uintptr(unsafe.Pointer(&zero[0])) //nolint:gosec // addresses of a buffer that stays
	try := func(name string, nr uintptr, args ...uintptr) {
		args = append(args, 0, 0, 0, 0, 0, 0)
		_, _, errno := syscall.RawSyscall6(nr, args[0], args[1], args[2], args[3], args[4], args[5])
		if errno != syscall.EPERM && errno != syscall.EACCES {
			worked = append(worked, fmt.Sprintf("%s: %v", name, errno))
		}
	}
	try("unshare user", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	try("unshare net", unix.SYS_UNSHARE, unix.CLONE_NEWNET)
	try("clone user", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(syscall.SIGCHLD))
	try("setns", unix.SYS_SETNS, 0, 0)
	try("mount", unix.SYS_MOUNT, p, p, p, 0, 0)
	try("umount", unix.SYS_UMOUNT2, p, 0)
	try("pivot_root", unix.SYS_PIVOT_ROOT, p, p)
	try("chroot", unix.SYS_CHROOT, p)
	try("open_tree", unix.SYS_OPEN_TREE, 0, p, 1)
	try("fsopen", unix.SYS_FSOPEN, p, 0)
	try("move_mount", unix.SYS_MOVE_MOUNT, 0, p, 0, p, 0)
	try("bpf", unix.SYS_BPF, 0, p, 64)
	try("perf_event_open", unix.SYS_PERF_EVENT_OPEN, p, 0, 0, ^uintptr(0), 0)
	try("userfaultfd", unix.SYS_USERFAULTFD, 0)
	try("io_uring_setup", unix.SYS_IO_URING_SETUP, 1, p)
	try("io_uring_enter", unix.SYS_IO_URING_ENTER, 0, 0, 0, 0)
	try("keyctl", unix.SYS_KEYCTL, 0)
	try("add_key", unix.SYS_ADD_KEY, p, p, 0, 0, 0)
	try("request_key", unix.SYS_REQUEST_KEY, p, p, 0, 0)
	try("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, 0, p, 0)
	try("init_module", unix.SYS_INIT_MODULE, p, 0, p)
	try("reboot", unix.SYS_REBOOT, 0, 0, 0)
	try("syslog", unix.SYS_SYSLOG, 3, p, 16)
	try("swapon", unix.SYS_SWAPON, p, 0)
	try("settimeofday", unix.SYS_SETTIMEOFDAY, p, 0)
	try("ioctl TIOCSTI", unix.SYS_IOCTL, 0, unix.TIOCSTI, p)
	try("ptrace of the first process", unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1)
	try("vsock", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	try("packet socket", unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW, 0)
	try("crypto socket", unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	try("raw socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	// The flags of clone3 cannot be filtered, so it is not there at all.
	if _, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, p, 64, 0); errno != syscall.ENOSYS {
		worked = append(worked, fmt.Sprintf("clone3: %v", errno))
	}
	if _, err := os.Open("/proc/1/root/etc/shadow"); err == nil {
		worked = append(worked, "shadow")
	}
	for _, path := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/usr/canary", "/etc/canary", "/canary", "/.balance", "/dev/canary"} {
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600); err == nil {
			f.Close()
			worked = append(worked, "write "+path)
		}
	}
	return worked
}

// try runs the program that wants out.
func try(t *testing.T, m *Machine, level, mode string, what target) []string {
	t.Helper()
	self := inside.Name
	if level == Process {
		var err error
		if self, err = os.Executable(); err != nil {
			t.Fatal(err)
		}
	}
	j := job(t, level, self)
	aim, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	j.Env[modeVar], j.Env["TARGET"] = mode, string(aim)
	o := start(t, m, j)
	var reached []string
	if err := json.Unmarshal([]byte(o.stdout), &reached); err != nil {
		t.Fatalf("%v: %+v", err, o)
	}
	return reached
}

// canaries puts a secret where people and programs keep theirs.
func canaries(t *testing.T) []string {
	t.Helper()
	places := []string{t.TempDir()}
	for _, dir := range []string{os.Getenv("HOME"), "/var/tmp", "/dev/shm", "/run", "/etc", "/opt", "/srv", "/mnt"} {
		if made, err := os.MkdirTemp(dir, "canary-"); err == nil { //nolint:usetesting // where secrets are; an ordinary user has some of these
			t.Cleanup(func() { _ = os.RemoveAll(made) })
			places = append(places, made)
		}
	}
	names := []string{
		".ssh/id_ed25519", ".ssh/known_hosts", ".aws/credentials", ".config/gcloud/credentials.db", ".kube/config", ".docker/config.json", ".netrc",
		".gnupg/private-keys-v1.d/key", ".mozilla/firefox/cookies.sqlite", ".config/chromium/Cookies", ".local/share/keyrings/login.keyring",
		".local/state/balance/identity.key", ".local/state/balance/ledger.db", ".local/state/balance/runs/r-other/work/data", ".bash_history",
		".config/gh/hosts.yml", ".npmrc", ".pypirc", ".git-credentials", ".password-store/mail.gpg", "docker.sock.conf", "wallet.dat",
		".config/Signal/config.json", ".thunderbird/logins.json", "shadow", "ssh_host_ed25519_key", "machine-key.pem", ".env", "backup.sql", "mail/inbox",
	}
	var out []string
	for i, name := range names {
		path := filepath.Join(places[i%len(places)], name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
		out = append(out, path)
	}
	return out
}

// Of 30 files that hold a secret none is read, by no way (TRUST, T45).
func TestCanaryFiles(t *testing.T) {
	m := machine(t)
	t.Setenv("CANARY", secret) // of this process, as /proc shows it to its neighbours
	what := target{Files: canaries(t)}
	if free := try(t, m, Process, "files", what); len(what.Files) != 30 || len(free) < len(what.Files) {
		t.Errorf("without walls %d of %d are read: the test does not find what is there", len(free), len(what.Files))
	}
	if reached := try(t, m, Sandbox, "files", what); len(reached) > 0 {
		t.Errorf("read: %v", reached)
	}
}

// Of 200 addresses none is reached, by no protocol (TRUST, T46).
func TestCanaryNetwork(t *testing.T) {
	m := machine(t)
	near := listeners(t)
	what := target{Sockets: near.Sockets, Net: slices.Clone(near.Net)}
	what.Sockets = append(what.Sockets, "/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock", "/run/dbus/system_bus_socket", "/run/user/0/bus", "/tmp/.X11-unix/X0", "/run/user/0/wayland-0", "/run/systemd/private", "@/tmp/.X11-unix/X0", "@/tmp/dbus-canary")
	for _, addr := range []string{"127.0.0.1", "127.0.0.53", "[::1]", "10.0.0.1", "192.168.0.1", "192.168.65.7", "172.17.0.1", "169.254.169.254", "[fe80::1%25eth0]", "[fd00::1]", "[2001:db8::1]", "192.0.2.1", "224.0.0.251", "255.255.255.255"} {
		for _, port := range []int{22, 53, 80, 443, 2375, 5353, 7420} {
			what.Net = append(what.Net, "tcp "+addr+":"+strconv.Itoa(port), "udp "+addr+":"+strconv.Itoa(port))
		}
	}
	if n := len(what.Net) + len(what.Sockets); n < 200 {
		t.Fatalf("%d probes", n)
	}
	if free := try(t, m, Process, "net", near); len(free) != len(near.Net)+len(near.Sockets) {
		t.Errorf("without walls %v of %+v are reached: the test does not find what is there", free, near)
	}
	if reached := try(t, m, Sandbox, "net", what); len(reached) > 0 {
		t.Errorf("reached: %v", reached)
	}
}

// listeners opens what can be reached on this machine.
func listeners(t *testing.T) target {
	t.Helper()
	var out target
	for _, s := range []string{filepath.Join(t.TempDir(), "sock"), "@canary-" + strconv.Itoa(os.Getpid())} {
		ln, err := net.Listen("unix", s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		out.Sockets = append(out.Sockets, s)
	}
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { udp.Close() })
		go func() {
			b := make([]byte, 16)
			for {
				n, from, err := udp.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = udp.WriteTo(b[:n], from)
			}
		}()
		out.Net = append(out.Net, "tcp "+ln.Addr().String(), "udp "+udp.LocalAddr().String())
	}
	return out
}

// The parts of the kernel that lead out are shut (TRUST, T49).
func TestForbiddenCalls(t *testing.T) {
	if worked := try(t, machine(t), Sandbox, "calls", target{}); len(worked) > 0 {
		t.Errorf("%s", strings.Join(worked, "\n"))
	}
}
