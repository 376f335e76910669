package task

import (
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

var update = flag.Bool("update", false, "rewrite testdata")

func fullVerdict(n byte) Verdict {
	return Verdict{
		Node: identity.ID{n}, Name: fmt.Sprintf("node-%d", n), Owner: "alice", Fits: true, Score: 700,
		Parts:   []Part{{Name: "cpu", Text: "leaves 6 of 8 cores", Points: 50}, {Name: "path", Text: "is this machine", Points: 60}},
		Reasons: []Reason{fullReason()}, AgeMS: 1500, Devices: []string{"GPU-1"},
	}
}

func fullReason() Reason {
	return Reason{Rule: "memory", Text: "needs 8 GiB of memory; 3.1 GiB of 16 GiB are free", Need: 8 << 30, Have: 3 << 30, Ever: true}
}

// records are the payloads of the entries in the topic of a run, with every
// field set.
func records(t testing.TB) map[string]any {
	place, err := NewPlace(2, identity.ID{1}, "node-1", Ranking{fullVerdict(1), fullVerdict(2)})
	if err != nil {
		t.Fatal(err)
	}
	place.More = 3
	place.Ranks = []Rank{{Run: "r-aaaaaaaaaaaaaaaa", Node: identity.ID{1}, Name: "node-1"}}
	return map[string]any{
		KindSubmit:   &Submit{Spec: fullSpec()},
		KindPlace:    &place,
		KindCancel:   &Cancel{Reason: "cancelled by its submitter"},
		KindLost:     &LostRecord{Attempt: 1, Reason: "out of reach"},
		KindReceipt:  &Receipt{Attempt: 1, Finished: wire.Hash{4}},
		KindAccepted: &Accepted{Attempt: 1, Submit: wire.Hash{5}, Devices: []string{"GPU-1"}, Policy: wire.Hash{6}},
		KindRefused:  &Refused{Attempt: 1, Reasons: []Reason{fullReason()}},
		KindStarted:  &Started{Attempt: 1, Millis: 1_700_000_000_000},
		KindFinished: &Finished{
			Attempt: 1, State: Failed, ExitCode: 137, Reason: "signal: killed", Outputs: wire.Hash{7}, Manifest: wire.Hash{8}, Policy: wire.Hash{9},
			Usage: Usage{WallMS: 1, CPUMS: 2, MaxRSS: 3, Output: 4, Dropped: 5, GPUMS: 6, PeakVRAM: 7, InBytes: 8, OutBytes: 9, PeakMemory: 10},
		},
	}
}

// The encoding of each record is pinned, as signatures cover it, and no record
// nests deeper than the wire allows.
func TestRecords(t *testing.T) {
	for kind, record := range records(t) {
		b, err := wire.Marshal(record)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		again := reflect.New(reflect.TypeOf(record).Elem())
		if err := wire.Unmarshal(b, again.Interface()); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if !reflect.DeepEqual(again.Interface(), record) {
			t.Errorf("%s became %+v, was %+v", kind, again.Elem(), record)
		}
		path := filepath.Join("testdata", kind+".hex")
		if *update {
			if err := os.WriteFile(path, []byte(hex.EncodeToString(b)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(want)) != hex.EncodeToString(b) {
			t.Errorf("the encoding of %s changed:\n%x\nwant\n%s", kind, b, want)
		}
	}
}

// The least and the most that a spec can say.
func TestSpecEncoding(t *testing.T) {
	for name, spec := range map[string]Spec{"empty": {}, "bare": {Driver: DriverProcess, Command: []string{"true"}}, "full": fullSpec()} {
		b, err := wire.Marshal(Submit{Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		var got Submit
		if err := wire.Unmarshal(b, &got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		text, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		var again Spec
		if err := json.Unmarshal(text, &again); err != nil || name == "full" && !reflect.DeepEqual(again, spec) {
			t.Errorf("%s as JSON: %+v, %v", name, again, err)
		}
	}
}

// A ranking of a large mesh is cut to what an entry can hold, the best kept.
func TestPlaceOfALargeMesh(t *testing.T) {
	var ranking Ranking
	for i := range 1000 {
		v := fullVerdict(byte(i))
		v.Score = 1000 - i
		ranking = append(ranking, v)
	}
	p, err := NewPlace(1, identity.ID{1}, "node-1", ranking)
	if err != nil {
		t.Fatal(err)
	}
	b, err := wire.Marshal(p)
	if err != nil || len(b) > wire.MaxPayload {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	got, err := p.Ranking()
	if err != nil || len(got)+p.More != 1000 || len(got) < 100 || !reflect.DeepEqual(got, ranking[:len(got)]) {
		t.Errorf("%d kept, %d more: %v", len(got), p.More, err)
	}
}

func FuzzRecords(f *testing.F) {
	for _, record := range records(f) {
		b, err := wire.Marshal(record)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, into := range []any{&Submit{}, &Place{}, &Cancel{}, &LostRecord{}, &Receipt{}, &Accepted{}, &Refused{}, &Started{}, &Finished{}, &Verdict{}} {
			if wire.Unmarshal(b, into) != nil {
				continue
			}
			if again, err := wire.Marshal(into); err != nil || string(again) != string(b) {
				t.Errorf("%x became %x: %v", b, again, err)
			}
			switch r := into.(type) {
			case *Submit:
				_ = r.Spec.Check() // takes whatever a stranger sends
			case *Place:
				_, _ = r.Ranking()
			}
		}
	})
}
