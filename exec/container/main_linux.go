package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/balanceai/balance/exec/isolate/launch"
)

// It does its work while packages are initialised, before main: whatever program
// imports it, a test for example, can stand for a container.
func init() {
	switch {
	case len(os.Args) == 2 && os.Args[0] == Name && os.Args[1] == actRun:
		os.Exit(stand())
	case len(os.Args) == 4 && os.Args[0] == Name && os.Args[1] == actRemove:
		if remove(context.Background(), os.Args[2], os.Args[3]) != nil {
			os.Exit(exitCannot)
		}
		os.Exit(0)
	}
}

// exitCannot is the exit code of shells for a program that cannot be started.
const exitCannot = 126

// stand stands for a container, and returns its exit code. The first two files are
// a [Plan] and one that reports.
func stand() int {
	report := os.NewFile(launch.FirstFile+1, "report")
	unix.CloseOnExec(launch.FirstFile + 1)
	// Signals go to the container from the first moment on.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGWINCH)
	code, err := run(os.NewFile(launch.FirstFile, "plan"), report, signals)
	if err != nil {
		fmt.Fprint(report, launch.Failed, errno(err), " ", err)
		return exitCannot
	}
	return code
}

// errno is the error number of the kernel that an engine's words stand for: 0 for none.
func errno(err error) string {
	said := err.Error()
	var a *answerError
	switch {
	case !errors.As(err, &a):
	case strings.Contains(said, "not found in $PATH"), strings.Contains(said, "no such file or directory"):
		return strconv.Itoa(int(syscall.ENOENT))
	case strings.Contains(said, "permission denied"):
		return strconv.Itoa(int(syscall.EACCES))
	}
	return "0"
}

func run(plan io.Reader, report io.Writer, signals <-chan os.Signal) (code int, err error) {
	var p Plan
	if err := json.NewDecoder(plan).Decode(&p); err != nil {
		return 0, err
	}
	ctx := context.Background()
	c := dial(p.Socket)
	id := name(p.Run)
	made, err := p.make(ctx, c)
	if err != nil {
		return 0, err
	}
	io1, err := c.attach(ctx, id, p.Stdin)
	if err != nil {
		return 0, err
	}
	if p.TTY {
		if err := terminal(); err != nil {
			return 0, err
		}
	}
	if err := c.post(ctx, id, "start", nil); err != nil {
		return 0, err
	}
	killed, err := p.enforced(ctx, c)
	if err != nil {
		return 0, errors.Join(err, c.remove(ctx, made))
	}
	if _, err := io.WriteString(report, launch.Started); err != nil {
		return 0, err
	}
	go p.pass(ctx, c, signals)
	if p.Stdin {
		go io1.send(os.Stdin)
	}
	if p.TTY {
		_, err = io.Copy(os.Stdout, io1.in)
	} else {
		err = split(io1.in, os.Stdout, os.Stderr)
	}
	if err != nil {
		return 0, fmt.Errorf("its output: %w", err)
	}
	return p.end(ctx, c, report, killed)
}

// make makes the container, and compares it with what was asked for.
func (p *Plan) make(ctx context.Context, c *client) (id string, err error) {
	im, err := c.image(ctx, p.Image)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", p.Image, err)
	}
	if err := im.suits(); err != nil {
		return "", err
	}
	want, err := p.config(im)
	if err != nil {
		return "", err
	}
	if err := c.remove(ctx, name(p.Run)); err != nil { // of an earlier attempt
		return "", err
	}
	if err := c.create(ctx, name(p.Run), want); err != nil {
		return "", err
	}
	got, err := c.inspect(ctx, name(p.Run))
	if err != nil {
		return "", err
	}
	return got.ID, want.verify(got)
}

// enforced reads the limits from the kernel. A program that has ended before that
// needs none any more. killed tells, at the end, whether something of it was killed
// for want of memory.
func (p *Plan) enforced(ctx context.Context, c *client) (killed func() bool, err error) {
	killed = func() bool { return false }
	got, err := c.inspect(ctx, name(p.Run))
	if err != nil || got.State.Pid == 0 {
		return killed, err
	}
	if p.Limits.Memory > 0 {
		killed = watchMemory("/", got.State.Pid)
	}
	if err := p.Limits.enforced("/", got.State.Pid); err != nil && !errors.Is(err, errEnded) {
		return killed, err
	}
	return killed, nil
}

// terminal makes standard input, which is the supervisor's terminal, one that only
// passes on: the container has its own. Its changes of size come as signals then.
func terminal() error {
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil && !errors.Is(err, syscall.EPERM) { // it is so already
		return fmt.Errorf("its terminal: %w", err)
	}
	if _, err := term.MakeRaw(0); err != nil {
		return fmt.Errorf("its terminal: %w", err)
	}
	return nil
}

// pass passes signals on.
func (p *Plan) pass(ctx context.Context, c *client, signals <-chan os.Signal) {
	size := func() {
		if w, h, err := term.GetSize(0); err == nil {
			_ = c.post(ctx, name(p.Run), "resize", url.Values{"h": {strconv.Itoa(h)}, "w": {strconv.Itoa(w)}})
		}
	}
	if p.TTY {
		size()
	}
	for s := range signals {
		sig, _ := s.(syscall.Signal)
		if sig == syscall.SIGWINCH {
			size()
			continue
		}
		_ = c.post(ctx, name(p.Run), "unpause", nil) // what stands still does not hear it
		_ = c.post(ctx, name(p.Run), "kill", url.Values{"signal": {unix.SignalName(sig)}})
	}
}

// end waits until the container has ended, and tells if that was for want of memory.
func (p *Plan) end(ctx context.Context, c *client, report io.Writer, killed func() bool) (code int, err error) {
	if code, err = c.wait(ctx, name(p.Run)); err != nil {
		return 0, err
	}
	got, err := c.inspect(ctx, name(p.Run))
	if is(err, http.StatusNotFound) {
		return 0, errors.New("somebody has removed the container")
	}
	if err == nil && (got.State.OOMKilled || killed()) && code != 0 {
		fmt.Fprint(report, launch.Memory)
	}
	return code, nil
}
