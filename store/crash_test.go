package store

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/wire"
)

// writer returns a command that runs [writeForever] on the ledger in path.
func writer(t *testing.T, path string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), append(env, "STORE_TEST_WRITER="+path)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// writeForever appends from several goroutines until it is killed, or until it
// has made count calls, and acknowledges each entry on out by its hash.
func writeForever(path string, count int, acknowledge func(wire.Hash)) error {
	ctx := context.Background()
	s, err := Open(ctx, path, key(1))
	if err != nil {
		return err
	}
	// Often, so that it happens at many of the moments tried.
	if _, err := s.conn.ExecContext(ctx, `PRAGMA wal_autocheckpoint = 25`); err != nil {
		return err
	}
	var t testing.T
	mesh, g := genesis(&t)
	if err := s.Import(ctx, mesh, []*wire.Entry{g}); err != nil {
		return err
	}
	acknowledge(g.Hash())
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := 0; count == 0 || i < count; i++ {
				list, err := s.Append(ctx, draft("mesh", strings.Repeat("x", 100*(i%30))), draft(fmt.Sprintf("topic-%d", w), "y"))
				if err != nil {
					panic(err)
				}
				for _, e := range list {
					acknowledge(e.Hash())
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// runWriter is what the test binary does when it is started by writer.
func runWriter(path string) error {
	log := os.Getenv("WRITELOG")
	if log == "" {
		return writeForever(path, 0, func(h wire.Hash) { fmt.Println(h) })
	}
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	return writeForever(path, 8, func(h wire.Hash) {
		if err := writeEvent(out, event{op: 'A', data: h[:]}); err != nil {
			panic(err)
		}
	})
}

// event is one thing that a writer did, as testdata/writelog.c records it for [TestPowerCut].
type event struct {
	op     byte // write, truncate, sync, unlink; or an entry was acknowledged
	file   byte // 1 is the ledger, 2 its -wal, 3 its -journal
	offset int64
	data   []byte
}

func writeEvent(w io.Writer, e event) error {
	b := append([]byte{e.op, e.file}, binary.LittleEndian.AppendUint64(nil, uint64(e.offset))...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.data)))
	_, err := w.Write(append(b, e.data...))
	return err
}

// mustHold opens a ledger after a crash: it is sound and has every entry that
// was acknowledged.
func mustHold(t *testing.T, path string, acknowledged []wire.Hash) {
	t.Helper()
	s, err := Open(t.Context(), path, key(1))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	mustVerify(t, s, -1)
	list, err := s.List(t.Context(), "", 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	here := map[wire.Hash]bool{}
	for _, e := range list {
		here[e.Hash()] = true
	}
	for i, h := range acknowledged {
		if !here[h] {
			t.Fatalf("entry %d of %d that were acknowledged is lost; %d are there", i, len(acknowledged), len(list))
		}
	}
}

// A process killed at any moment loses nothing that it has acknowledged.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	var acknowledged []wire.Hash
	for range 12 {
		cmd := writer(t, path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		var timer *time.Timer
		for lines.Scan() {
			b, err := hex.DecodeString(lines.Text())
			if err != nil || len(b) != len(wire.Hash{}) {
				break // cut by the kill
			}
			acknowledged = append(acknowledged, wire.Hash(b))
			if timer == nil {
				timer = time.AfterFunc(time.Duration(rand.IntN(60))*time.Millisecond, func() { _ = cmd.Process.Kill() })
			}
		}
		_ = cmd.Wait() // it was killed
		if timer == nil {
			t.Fatal("the writer has acknowledged nothing")
		}
	}
	t.Logf("%d entries acknowledged over 12 kills", len(acknowledged))
	mustHold(t, path, acknowledged)
}
