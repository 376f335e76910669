package store

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/balanceai/balance/mesh/wire"
)

func readEvents(t *testing.T, path string) []event {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []event
	for len(b) > 0 {
		e := event{op: b[0], file: b[1], offset: int64(binary.LittleEndian.Uint64(b[2:]))}
		size := binary.LittleEndian.Uint32(b[10:])
		e.data = b[14 : 14+size]
		b = b[14+size:]
		out = append(out, e)
	}
	return out
}

// disk is what is left of one file when the power fails: what was synced, and
// whatever the device did with the rest.
type disk struct {
	synced  []byte
	pending []event
}

func apply(b []byte, e event) []byte {
	end := int(e.offset) + len(e.data)
	if e.op == 'T' {
		end = int(e.offset)
		b = b[:min(len(b), end)]
	}
	if end > len(b) {
		b = append(b, make([]byte, end-len(b))...)
	}
	copy(b[e.offset:], e.data)
	return b
}

func (d *disk) do(e event) {
	switch e.op {
	case 'U':
		*d = disk{}
		return
	case 'W', 'T':
		d.pending = append(d.pending, e)
		return
	}
	for _, p := range d.pending {
		d.synced = apply(d.synced, p)
	}
	d.pending = nil
}

// sector is what a device writes as a whole.
const sector = 512

// left returns the file after the power failed: each sector that was not synced
// is written with the given chance.
func (d *disk) left(random *rand.Rand, chance float64) []byte {
	b := bytes.Clone(d.synced)
	for _, p := range d.pending {
		if p.op == 'T' {
			if random.Float64() < chance {
				b = apply(b, p)
			}
			continue
		}
		for from := 0; from < len(p.data); from += sector {
			if random.Float64() < chance {
				b = apply(b, event{'W', p.file, p.offset + int64(from), p.data[from:min(from+sector, len(p.data))]})
			}
		}
	}
	return b
}

// The power fails after any of the writes, and the device has kept none, some or
// all of what was not synced: nothing that was acknowledged is lost, and the
// ledger is sound.
func TestPowerCut(t *testing.T) {
	dir := t.TempDir()
	library, log := filepath.Join(dir, "writelog.so"), filepath.Join(dir, "log")
	if out, err := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-o", library, "testdata/writelog.c", "-ldl").CombinedOutput(); err != nil {
		unavailable(t, "gcc: "+err.Error()+" "+string(out))
	}
	if err := writer(t, filepath.Join(dir, "ledger.db"), "LD_PRELOAD="+library, "WRITELOG="+log).Run(); err != nil {
		t.Fatal(err)
	}
	events := readEvents(t, log)
	random := rand.New(rand.NewPCG(3, 4))
	disks := map[byte]*disk{1: {}, 2: {}, 3: {}}
	var acknowledged []wire.Hash
	states := 0
	path := filepath.Join(dir, "after.db")
	for _, e := range events {
		if e.op == 'A' {
			acknowledged = append(acknowledged, wire.Hash(e.data))
			continue
		}
		disks[e.file].do(e)
		for _, chance := range []float64{0, 0.5, 1} {
			if chance > 0 && random.IntN(4) > 0 {
				continue // each takes its time
			}
			states++
			for suffix, d := range map[string]*disk{"": disks[1], "-wal": disks[2], "-journal": disks[3]} {
				if err := os.WriteFile(path+suffix, d.left(random, chance), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			os.Remove(path + "-shm")
			mustHold(t, path, acknowledged)
		}
	}
	if len(acknowledged) < 40 || states < 100 {
		t.Fatalf("%d entries and %d states are no test", len(acknowledged), states)
	}
	t.Logf("%d entries acknowledged, %d events, %d states after a power cut", len(acknowledged), len(events), states)
}
