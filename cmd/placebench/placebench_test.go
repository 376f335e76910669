package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	sampleNodes = "testdata/nodes.csv" // made by chance, in the columns of the public trace
	samplePods  = "testdata/pods.csv"
)

func output(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := bench(args, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// On the sample, too, the product's policy leaves less unused than the others,
// and does the same each time.
func TestScores(t *testing.T) {
	args := []string{"--nodes", sampleNodes, "--pods", samplePods, "--seeds", "42-46", "--json"}
	first := output(t, args...)
	if second := output(t, args...); second != first {
		t.Errorf("the same twice gave\n%s\n%s", first, second)
	}
	got := map[string]score{}
	dec := json.NewDecoder(strings.NewReader(first))
	for dec.More() {
		var s score
		if err := dec.Decode(&s); err != nil {
			t.Fatal(err)
		}
		if s.Seeds != 5 || s.Alloc100 <= 0 || s.Alloc100 > 100 || s.Alloc130 < s.Alloc100 {
			t.Errorf("%+v", s)
		}
		got[s.Policy] = s
	}
	if len(got) != len(slices.Collect(policyNames())) {
		t.Fatalf("policies %v", got)
	}
	for name, s := range got {
		if name != "balance" && s.Alloc130 > got["balance"].Alloc130+0.5 {
			t.Errorf("%s reaches %.2f %%, the product's policy %.2f %%", name, s.Alloc130, got["balance"].Alloc130)
		}
	}
	if got["random"].Alloc130 > got["balance"].Alloc130-2 {
		t.Errorf("chance reaches %.2f %%, the product's policy %.2f %%", got["random"].Alloc130, got["balance"].Alloc130)
	}
}

// What cluster says of a placement, the product's own admission says as well, and
// no device is ever given twice.
func TestProductFits(t *testing.T) {
	machines, err := readMachines(sampleNodes)
	if err != nil {
		t.Fatal(err)
	}
	runs, err := readRuns(samplePods)
	if err != nil {
		t.Fatal(err)
	}
	a := arrivalsOf(machines, runs, 1)
	c := newCluster(a.machines)
	p := newProduct(c, &a)
	for i := range a.jobs {
		j := &a.jobs[i]
		m, devices := p.place(j)
		fits := false
		for n := range c.machines {
			fits = fits || c.fits(n, j)
		}
		if (m >= 0) != fits {
			t.Fatalf("run %d: placed on %d, and that one fits is %v", i, m, fits)
		}
		if m < 0 {
			continue
		}
		if !c.fits(m, j) || len(devices) != j.gpus {
			t.Fatalf("run %d does not fit on machine %d with devices %v", i, m, devices)
		}
		c.take(m, j, devices)
		p.changed(m)
		for _, f := range c.free[m] {
			if f < 0 {
				t.Fatalf("machine %d has %v free", m, c.free[m])
			}
		}
	}
}

func TestSimulation(t *testing.T) {
	out := output(t, "--nodes", sampleNodes, "--pods", samplePods, "--seeds", "1", "--dispatchers", "3", "--stale", "1s")
	if !strings.Contains(out, "3            1s") {
		t.Errorf("%s", out)
	}
	machines, _ := readMachines(sampleNodes)
	runs, _ := readRuns(samplePods)
	for _, churn := range []bool{false, true} {
		o := newSimulation(arrivalsOf(machines, runs, 1), 3, 1e9, 1, churn).run()
		if o.alloc < 50 || o.alloc > 100 || o.refusals > 1 {
			t.Errorf("departures %v: %+v", churn, o)
		}
	}
}

func TestMistakes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.csv")
	if err := os.WriteFile(bad, []byte("sn,cpu_milli,memory_mib,gpu,model\na,many,1,1,T4\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{},
		{"--nodes", sampleNodes},
		{"--nodes", "none.csv", "--pods", samplePods},
		{"--nodes", bad, "--pods", samplePods},
		{"--nodes", samplePods, "--pods", samplePods},
		{"--nodes", sampleNodes, "--pods", samplePods, "--seeds", "x"},
		{"--nodes", sampleNodes, "--pods", samplePods, "--policy", "best"},
		{"--nodes", sampleNodes, "--pods", samplePods, "--dispatchers", "0"},
		{"--nodes", sampleNodes, "--traces", t.TempDir()},
	} {
		if err := bench(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
