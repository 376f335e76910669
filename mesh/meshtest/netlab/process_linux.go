package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// Process is a program that runs on a host, in a process group of its own.
type Process struct {
	host *Host
	cmd  *exec.Cmd
	out  tail
	done chan struct{} // closed when it has ended
	err  error         // how, when it has
}

// Start starts a program that runs until it ends by itself, is killed, or the
// test ends. What it writes is shown if the test fails.
func (h *Host) Start(name string, args ...string) (*Process, error) {
	p := &Process{host: h, cmd: h.command(context.Background(), name, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := h.Do(p.cmd.Start); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	h.lab.processes = append(h.lab.processes, p)
	return p, nil
}

// Output runs a program to its end and returns what it wrote to its standard
// output. An error says what it wrote to the other.
func (h *Host) Output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := h.command(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := h.Do(cmd.Run); err != nil {
		return out.String(), fmt.Errorf("%s: %v: %w: %s", h.Name, cmd.Args, errors.Join(err, ctx.Err()), bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

func (h *Host) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), h.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// Signal sends a signal to the process.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process and its group, and waits for the end.
func (p *Process) Kill() {
	select {
	case <-p.done:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// Done is closed when the process has ended; Err then says how.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process ended: nil, if well.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Output returns the end of what the process has written.
func (p *Process) Output() string { return p.out.String() }

// tailSize is how much of a process's output is kept, in bytes.
const tailSize = 16 << 10

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	end []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, b...)
	if extra := len(t.end) - tailSize; extra > 0 {
		t.end = append(t.end[:0], t.end[extra:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.end)
}
