package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// interval is when a run had so many thousandths of a core of a machine.
type interval struct {
	owner, node string
	cpu         int
	from, to    int64 // ns
}

// Three owners give 200 runs of all sizes to five machines of different sizes at
// one time: no machine is oversold, all runs end, and nobody gets much more than
// the others while all wait.
func TestManyOwners(t *testing.T) {
	each, least := 20, 0.1
	if os.Getenv("BALANCE_LAB") != "" {
		each, least = 67, 0.22
	}
	owners := []string{"ana", "ben", "cleo"}
	sizes := []int{400, 600, 800, 1000, 1500} // thousandths of a core that each machine gives
	need(t, runtime.NumCPU() >= 2, "two cores")
	var hosts []host
	for i, size := range sizes {
		rules := fmt.Sprintf("reserve: {cpu: %dm}\nothers:\n  - {owner: \"*\", isolation: none, cpu: %dm, memory: 8GiB}\n", 1000*runtime.NumCPU()-size, size)
		hosts = append(hosts, host{name: fmt.Sprintf("m%d", i), owner: "house", rules: rules})
	}
	for _, o := range owners {
		hosts = append(hosts, host{name: "pc-" + o, owner: o, client: true})
	}
	c := newCluster(t, hosts...)
	for i := range sizes { // so that all wait before the first one starts
		c.balance(i, "drain")
	}
	dir := t.TempDir()
	var all sync.WaitGroup
	for i, owner := range owners {
		all.Go(func() {
			for k := range each {
				cpu := []int{100, 300, 500, 900, 1400}[(k*7+i)%5]
				script := fmt.Sprintf(`a=$(date +%%s%%N); sleep 0.1; echo %s $BALANCE_NODE %d $a $(date +%%s%%N) > %s`, owner, cpu, filepath.Join(dir, fmt.Sprintf("%s-%d", owner, k)))
				c.balance(len(sizes)+i, "run", "-d", "--cpu", fmt.Sprintf("%dm", cpu), "--", "sh", "-c", script)
			}
		})
	}
	all.Wait()
	for i := range sizes {
		c.balance(i, "resume")
	}
	begin := time.Now()
	for i := range owners {
		c.ended(len(sizes)+i, each)
	}
	t.Logf("%d runs in %v", each*len(owners), time.Since(begin).Round(time.Millisecond))
	list := intervals(t, dir)
	if len(list) != each*len(owners) {
		t.Errorf("%d runs have left their times", len(list))
	}
	oversold(t, list, sizes)
	fair(t, list, owners, least)
}

// ended waits until so many runs of a node have succeeded.
func (c *cluster) ended(i, want int) {
	c.t.Helper()
	states, waits := map[task.State]int{}, ""
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		var list []task.Status
		if err := json.Unmarshal([]byte(c.balance(i, "ps", "--all", "--json")), &list); err != nil {
			c.t.Fatal(err)
		}
		states = map[task.State]int{}
		for _, r := range list {
			states[r.State]++
			if r.State == task.Waiting {
				waits = r.ID
			}
			if r.State == task.Failed {
				c.t.Fatalf("%s: %s failed: %s", c.hosts[i].name, r.ID, r.Reason)
			}
		}
		if states[task.Succeeded] >= want {
			return
		}
	}
	c.t.Fatalf("%s has runs %v, want %d that succeeded; the last one that waits: %s", c.hosts[i].name, states, want, c.balance(i, "why", waits))
}

func intervals(t *testing.T, dir string) (list []interval) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		w := strings.Fields(string(b))
		if len(w) != 5 {
			t.Fatalf("%s: %q", f, b)
		}
		var n [3]int64
		for i := range n {
			if n[i], err = strconv.ParseInt(w[2+i], 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		list = append(list, interval{w[0], w[1], int(n[0]), n[1], n[2]})
	}
	return list
}

// oversold looks at each start for how much its machine had given away then.
func oversold(t *testing.T, list []interval, sizes []int) {
	t.Helper()
	most := map[string]int{}
	for _, a := range list {
		sum := 0
		for _, b := range list {
			if a.node == b.node && b.from <= a.from && a.from < b.to {
				sum += b.cpu
			}
		}
		most[a.node] = max(most[a.node], sum)
	}
	for i, size := range sizes {
		if got := most[fmt.Sprintf("m%d", i)]; got > size || got == 0 {
			t.Errorf("m%d gave away %d of %d thousandths of a core", i, got, size)
		}
	}
	t.Logf("most given away at one time: %v of %v", most, sizes)
}

// fair looks at what part each owner had got of what was done first, of half of it
// all.
func fair(t *testing.T, list []interval, owners []string, least float64) {
	t.Helper()
	slices.SortFunc(list, func(a, b interval) int { return int(a.to - b.to) })
	got, all := map[string]int{}, 0
	for _, r := range list[:len(list)/2] {
		got[r.owner] += r.cpu
		all += r.cpu
	}
	for _, o := range owners {
		part := float64(got[o]) / float64(all)
		if part < least {
			t.Errorf("%s had %.0f %% of what was done first", o, 100*part)
		}
	}
	t.Logf("of the first half: %v", got)
}
