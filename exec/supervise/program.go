package supervise

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/exec/cgroup"
	"github.com/balanceai/balance/exec/isolate/launch"
	"github.com/balanceai/balance/exec/lease"
)

// How long a run may go on after its program has ended.
const (
	linger = time.Second // for what it left in the background to end by itself
	drain  = time.Second // from the kill to the end of its output
)

// program is a program that runs.
type program struct {
	*group
	began    time.Time
	grace    time.Duration
	killer   *time.Timer // from SIGTERM to SIGKILL
	out      *output
	order    *Order
	terminal *os.File // nil for pipes
}

// overran tells whether a run has failed for its limits. What the kernel did to
// the group explains only a failure: a program may well survive the end of one
// process, or go on with fewer.
func (o *Order) overran(e *Exit, did cgroup.Events) *End {
	tooLarge := e.Signal == int(syscall.SIGXFSZ) || e.Code == signalBase+int(syscall.SIGXFSZ)
	switch {
	case e.Code == 0 && e.Signal == 0:
		return nil
	case did.OOM > 0:
		return &o.OOM
	case o.Disk > 0 && tooLarge:
		return &o.XFSZ
	case did.PIDs > 0:
		return &o.PIDs
	}
	return nil
}

// signalBase is what shells, and sandboxes, add to the number of the signal that
// has ended a program.
const signalBase = 128

// end is called with the lock of the server held, once or again. A grace time
// of 0 is that of the order.
func (p *program) end(force bool, grace time.Duration) {
	switch {
	case force:
		p.kill()
	case p.killer == nil:
		p.terminate()
		if p.terminal != nil {
			terminateAt(p.terminal, p.pid)
		}
		p.killer = time.AfterFunc(cmp.Or(grace, p.grace), p.kill)
	}
	_ = p.hold(false) // what stands still does not hear SIGTERM
}

// terminateAt asks those to end that are in the foreground of a terminal, which a
// shell has put into a group of their own: known is the one that has been asked.
func terminateAt(terminal *os.File, known int) {
	raw, err := terminal.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if pgrp, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP); err == nil && pgrp > 1 && pgrp != known {
			_ = syscall.Kill(-pgrp, syscall.SIGTERM)
		}
	})
}

// run starts the program and returns how it ended, when all that it started is
// gone.
func (s *server) run() *Exit {
	o, err := ReadOrder(".")
	if err != nil {
		return cannot(err)
	}
	out, err := newOutput(".", o.Output, s.logGrown)
	if err != nil {
		return cannot(err)
	}
	defer s.whileLeased(o)()
	if why := s.asked(); why != nil {
		return &Exit{Code: -1, End: why}
	}
	f, err := open(o)
	if err != nil {
		f.close()
		return cannot(err)
	}
	more, err := launch.Command{Files: s.private.fill(o.Files)}.Open()
	if err != nil {
		f.close()
		return cannot(err)
	}
	defer more.Close()
	defer undo(o)
	began := time.Now()
	proc, g, err := start(o, append(f.program[:], more.Files...))
	f.given()
	more.CloseFiles()
	if err != nil {
		f.close()
		return cannot(err)
	}
	p := &program{group: g, began: began, grace: o.Grace, out: out, order: o, terminal: f.terminal}
	if o.Time > 0 {
		defer time.AfterFunc(o.Time, func() { s.end(o.TimeUp, false) }).Stop()
	}
	s.set(p, f.stdin)
	out.start(f.output...)
	if err := reserveExit(); err != nil { // it will be written when there is room
		os.Remove(exitFile + ".part")
	}
	if o.Disk > 0 {
		defer s.watchDisk(o)()
	}
	defer letOut(more.Door)()
	defer reap(g)()
	defer s.unlessForgotten()()
	defer time.AfterFunc(time.Second, slim).Stop() // a short run is not worth it
	exit := s.wait(p, proc)
	exit.Started, exit.Said = began, said(more.Report)
	return exit
}

// undoTime bounds how long the account of a run's end waits for what is undone.
const undoTime = 40 * time.Second

// undo undoes what a program has made that does not end with it. Where that fails,
// the node does it when it sees the end.
func undo(o *Order) {
	if len(o.After) == 0 {
		return
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer null.Close()
	p, err := os.StartProcess(launch.Self, o.After, &os.ProcAttr{Dir: "/", Env: []string{}, Files: []*os.File{null, null, null}})
	if err != nil {
		return
	}
	defer time.AfterFunc(undoTime, func() { _ = p.Kill() }).Stop()
	_, _ = p.Wait()
}

// fill puts the private variables into the file for them.
func (p *Private) fill(files []launch.File) []launch.File {
	out := slices.Clone(files)
	for i := range out {
		if out[i].Private {
			out[i].Data, _ = json.Marshal(p.Env) // strings can be
		}
	}
	return out
}

// whileLeased kills the run when its lease has run out, whether there is a node
// or not. It looks again and again: a timer does not count the time that the
// machine sleeps. The function that it returns stops that.
func (s *server) whileLeased(o *Order) (stop func()) {
	if o.Lease == 0 {
		return func() {}
	}
	look := func() {
		until, err := lease.Read(".")
		if err != nil || lease.Now() >= until { // what cannot be read grants nothing
			s.end(o.LeaseUp, true)
		}
	}
	look()
	tick := time.NewTicker(lease.Step(o.Lease))
	go func() {
		for range tick.C {
			look()
		}
	}()
	return tick.Stop
}

// said is what a program that holds a sandbox has told of its start. It has ended.
func said(report *os.File) string {
	if report == nil {
		return ""
	}
	b, _ := io.ReadAll(io.LimitReader(report, 512)) // what has come
	if len(b) == 0 {
		return "?" // not even that it could not
	}
	return string(b)
}

// unlessForgotten ends the run when its folder is gone: nobody could find it any
// more. The function that it returns stops that.
func (s *server) unlessForgotten() (stop func()) {
	tick := time.NewTicker(5 * time.Second)
	go func() {
		for range tick.C {
			if _, err := os.Lstat(sockFile); errors.Is(err, os.ErrNotExist) {
				s.end(End{State: "failed", Reason: "the run's folder was removed"}, true)
			}
		}
	}()
	return tick.Stop
}

// reap waits for what the program has left behind, as it ends. The function
// that it returns stops it.
func reap(g *group) (stop func()) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			g.orphans()
		}
	}()
	return func() { signal.Stop(ended) }
}

// cannot is the exit of a program that was not started.
func cannot(err error) *Exit {
	e := &Exit{Code: -1, Error: err.Error()}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		e.Error, e.Errno = errno.Error(), int(errno)
	}
	return e
}

// wait waits until the program has ended and all that it started is gone.
func (s *server) wait(p *program, proc *os.Process) *Exit {
	state := awaitExit(proc)
	why := s.clear() // from here on nobody else kills
	if p.killer != nil {
		p.killer.Stop()
	}
	if why == nil && !p.out.ended(0) {
		p.out.ended(linger)
	}
	e := &Exit{End: why}
	did, used := p.events(), p.usage()
	if err := p.sweep(); err != nil {
		e.Left = err.Error()
	}
	if !p.out.ended(drain) {
		p.out.cut()
	}
	if state == nil {
		state, _ = proc.Wait() // there is nothing else to be said of a state that is not there
	}
	e.WallMS = uint64(time.Since(p.began).Milliseconds())
	e.Output, e.Dropped = p.out.sum()
	e.fill(state)
	e.account(used)
	if e.End == nil {
		e.End = p.order.overran(e, did)
	}
	return e
}

// fill says how the program ended.
func (e *Exit) fill(state *os.ProcessState) {
	e.Code = -1
	if state == nil {
		e.Error = "nobody saw how it ended"
		return
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		e.Signal = int(status.Signal())
		return
	}
	e.Code = state.ExitCode()
}

// files are those of a program.
type files struct {
	program  [3]*os.File // its standard input, output and error
	output   []*os.File  // read here
	stdin    *stdin
	terminal *os.File // this end of it
}

// open makes the files of a program.
func open(o *Order) (f files, err error) {
	if o.TTY != nil {
		return openTerminal(o)
	}
	if !o.Stdin {
		f.program[0], err = os.Open(os.DevNull)
	} else {
		f.stdin = &stdin{}
		f.program[0], f.stdin.write, err = os.Pipe()
	}
	for i := 1; err == nil && i < 3; i++ {
		var r *os.File
		r, f.program[i], err = os.Pipe()
		f.output = append(f.output, r)
	}
	return f, err
}

// openTerminal makes a terminal, all three files of the program.
func openTerminal(o *Order) (f files, err error) {
	ours, theirs, err := pty.Open()
	if err != nil {
		return f, err
	}
	f.program = [3]*os.File{theirs, theirs, theirs}
	f.output, f.terminal = []*os.File{ours}, ours
	if o.Stdin {
		f.stdin = &stdin{write: ours, tty: true}
	}
	return f, o.TTY.set(ours)
}

// set gives a terminal its size.
func (s *Size) set(terminal *os.File) error {
	return pty.Setsize(terminal, &pty.Winsize{Rows: s.Rows, Cols: s.Cols})
}

// given closes what the program has now.
func (f *files) given() {
	for _, file := range f.program {
		file.Close()
	}
}

func (f *files) close() {
	f.given()
	for _, file := range f.output {
		file.Close()
	}
}

// account says what the run has used. Its group knows of every process. Without
// one there are those that have ended and were waited for, by the program or here:
// this process has no other children. See getrusage(2).
func (e *Exit) account(used cgroup.Usage) {
	e.Memory = used.Memory
	var all syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &all); err == nil {
		used.CPU = max(used.CPU, time.Duration(all.Utime.Nano()+all.Stime.Nano()))
		e.MaxRSS = max(0, int64(all.Maxrss)*rssUnit)
	}
	e.CPUMS = uint64(used.CPU.Milliseconds())
}
