package run

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/balanceai/balance/exec/task"
)

// The disk fills up while a run writes: the run goes on, its account says what
// is missing, and the node needs no restart (TRUST, R5).
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	need(t, os.Getuid() == 0 && syscall.Mount("none", dir, "tmpfs", 0, "size=68m") == nil, "root, to mount a small file system")
	l := newLab(t)
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	_ = l.Close()
	l.cfg.Dir = dir
	l.open()

	wrote := filepath.Join(t.TempDir(), "wrote")
	o := order(spec("sh", "-c", "head -c 1000 /dev/zero | tr '\\0' x; while [ ! -e ../full ]; do sleep 0.01; done; head -c 300000 /dev/zero | tr '\\0' y; touch "+wrote+"; "+
		"while [ ! -e ../room ]; do sleep 0.01; done; echo z; exit 3"))
	w := l.start(o)
	w.untilOutput("x")
	full := filepath.Join(dir, o.Run, "full")
	fill(t, full)
	eventually(t, "output on a full disk", func() bool { _, err := os.Stat(wrote); return err == nil })
	refused := refusal(t, l.Start(t.Context(), order(spec("true")), nothing))
	if refused.Reasons[0].Rule != "disk" {
		t.Errorf("a run on a full disk: %v", refused.Reasons)
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	eventually(t, "room on the disk", func() bool { free, err := freeDisk(dir); return err == nil && free > reserve+task.MiB })
	if err := os.WriteFile(filepath.Join(dir, o.Run, "room"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := w.end()
	if r.account.ExitCode != 3 || !strings.HasSuffix(r.stdout.String(), "z\n") {
		t.Errorf("%+v, stdout ends %q", r.account, r.stdout.String()[max(0, r.stdout.Len()-10):])
	}
	if u := r.account.Usage; u.Dropped == 0 || u.Output-u.Dropped != task.Bytes(r.stdout.Len()) {
		t.Errorf("usage %+v, %d bytes came", u, r.stdout.Len())
	}
	if len(r.notes) != 1 || !strings.HasSuffix(r.notes[0], " of the output before this are missing: no space left on device") {
		t.Errorf("notes %q", r.notes)
	}

	// It fills up before the end: the end is written when there is room.
	o = order(spec("sh", "-c", "echo ready; while [ ! -e ../full ]; do sleep 0.01; done; exit 4"))
	w = l.start(o)
	w.untilOutput("ready")
	full = filepath.Join(dir, o.Run, "full")
	fill(t, full)
	eventually(t, "the end of the program", func() bool { return len(l.Held()) == 0 })
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if r := w.end(); r.account.ExitCode != 4 {
		t.Errorf("%+v", r.account)
	}
	l.run(order(spec("true")))
}

// Neither what a run of another owner writes to the disk nor what any run writes to
// its output takes the reserve of the node (TRUST, T56).
func TestDiskReserve(t *testing.T) {
	dir := t.TempDir()
	need(t, os.Getuid() == 0 && syscall.Mount("none", dir, "tmpfs", 0, "size=160m") == nil, "root, to mount a small file system")
	l := newLab(t)
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	_ = l.Close()
	l.cfg.Dir = dir
	l.open()
	left := func() task.Bytes {
		free, err := freeDisk(dir)
		if err != nil {
			t.Fatal(err)
		}
		return free
	}

	flood := bad("flood", "256")
	flood.Limits.Output = task.GiB
	o := order(flood)
	r := l.run(o)
	if u := r.account.Usage; u.Dropped == 0 || u.Output-u.Dropped != task.Bytes(r.stdout.Len()) || left() < reserve {
		t.Errorf("usage %+v, %d bytes came, %v of the disk are left", u, r.stdout.Len(), left())
	}
	if err := os.RemoveAll(l.folder(o.Run)); err != nil {
		t.Fatal(err)
	}

	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{Limits: task.Limits{Disk: task.GiB}}, nil }
	o = order(spec("sh", "-c", "for i in 1 2 3 4; do head -c 40M /dev/zero > $i; sleep 1; done"))
	w := l.start(o)
	w.until("the start", func(r *result) bool { return len(r.events) > 0 })
	if no := refusal(t, l.Start(t.Context(), order(spec("true")), nothing)); no.Reasons[0].Rule != "disk" || !no.Reasons[0].Ever {
		t.Errorf("one more: %v", no.Reasons)
	}
	if r := w.end(); r.account.Cause != task.CauseDisk || left() < reserve/2 { // what it writes until somebody looks is over
		t.Errorf("%+v, %v of the disk are left", r.account, left())
	}
}

// fill writes until the disk is full. Then the file is there.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path + ".part")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 64<<10); len(b) > 0; {
		if _, err := f.Write(b); err != nil {
			b = b[:len(b)/2]
		}
	}
	if err := os.Rename(f.Name(), path); err != nil {
		t.Fatal(err)
	}
}
