package fleet

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/balanceai/balance/exec/task"
)

// tree unpacks a recorded part of a file system.
func tree(t *testing.T, name string) string {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := txtar.Write(a, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

// The real machine, whatever it is.
func TestProbe(t *testing.T) {
	p := NewProbe(t.TempDir())
	defer p.Close()
	o, err := p.Offer(t.Context())
	if err != nil {
		t.Log(err) // a machine with half a driver is no reason to fail
	}
	if o.Version != 1 || o.OS != runtime.GOOS || o.Arch != runtime.GOARCH || o.CPU == 0 || o.Memory < 64*task.MiB || o.Disk == 0 {
		t.Errorf("got %+v", o)
	}
	p.measure(true)
	time.Sleep(50 * time.Millisecond) // a few clock ticks
	r := p.measure(true)
	if r.cpu < 0 || r.cpu > 100 || r.memory != o.Memory || r.available == 0 || r.available > r.memory || r.disk > o.Disk || len(r.gpus) != len(o.GPUs) {
		t.Errorf("got %+v", r)
	}
	t.Logf("%+v", o)
	t.Logf("%+v", r)
}

func TestProbeWithoutDisk(t *testing.T) {
	p := NewProbe("/no/such/folder")
	defer p.Close()
	o, err := p.Offer(t.Context())
	if err == nil || !strings.Contains(err.Error(), "/no/such/folder") || o.Disk != 0 || o.Memory == 0 {
		t.Errorf("error %v, %v of disk, %v of memory", err, o.Disk, o.Memory)
	}
}

// What a node that nobody watches costs each second.
func BenchmarkMeasure(b *testing.B) {
	p := NewProbe(b.TempDir())
	defer p.Close()
	if _, err := p.Offer(b.Context()); err != nil {
		b.Log(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		p.measure(false)
	}
}
