package main

import (
	"encoding/csv"
	"fmt"
	"math/rand"
	"os"
	"slices"
	"strconv"
	"strings"
)

// machine is a row of a list of nodes.
type machine struct {
	name   string
	cpu    int // thousandths of a core
	memory int // MiB
	gpus   int
	model  string
}

// job is a row of a list of pods.
type job struct {
	name   string
	cpu    int // thousandths of a core
	memory int // MiB
	gpus   int
	milli  int      // of each GPU, in thousandths
	models []string // any of them; empty for any
}

// size is what it asks for of all GPUs, in thousandths of one.
func (j *job) size() int { return j.gpus * j.milli }

// part reports whether it asks for a part of one GPU.
func (j *job) part() bool { return j.gpus == 1 && j.milli < 1000 }

// table is a CSV file with a header.
type table struct {
	file string
	cols map[string]int
	rows [][]string
	err  error
}

func readTable(file string, needs ...string) (*table, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(rows) < 2 {
		return nil, fmt.Errorf("%s: no rows", file)
	}
	t := &table{file: file, cols: map[string]int{}, rows: rows[1:]}
	for i, name := range rows[0] {
		t.cols[name] = i
	}
	for _, name := range needs {
		if _, ok := t.cols[name]; !ok {
			return nil, fmt.Errorf("%s: no column %s", file, name)
		}
	}
	return t, nil
}

// number reads a cell. The first one that is none is the table's error.
func (t *table) number(row int, col string) int {
	n, err := strconv.Atoi(t.rows[row][t.cols[col]])
	if (err != nil || n < 0) && t.err == nil {
		t.err = fmt.Errorf("%s: row %d, %s: %q is no amount", t.file, row+2, col, t.rows[row][t.cols[col]])
	}
	return n
}

func readMachines(file string) ([]machine, error) {
	t, err := readTable(file, "sn", "cpu_milli", "memory_mib", "gpu", "model")
	if err != nil {
		return nil, err
	}
	var out []machine
	for i, r := range t.rows {
		out = append(out, machine{r[t.cols["sn"]], t.number(i, "cpu_milli"), t.number(i, "memory_mib"), t.number(i, "gpu"), r[t.cols["model"]]})
	}
	slices.SortFunc(out, func(a, b machine) int { return strings.Compare(a.name, b.name) })
	return out, t.err
}

func readRuns(file string) ([]job, error) {
	t, err := readTable(file, "name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
	if err != nil {
		return nil, err
	}
	spec, hasSpec := t.cols["gpu_spec"]
	var out []job
	for i, r := range t.rows {
		j := job{name: r[t.cols["name"]], cpu: t.number(i, "cpu_milli"), memory: t.number(i, "memory_mib"), gpus: t.number(i, "num_gpu"), milli: t.number(i, "gpu_milli")}
		if j.gpus > 1 {
			j.milli = 1000
		}
		if hasSpec && r[spec] != "" && j.gpus > 0 {
			j.models = strings.Split(r[spec], "|")
		}
		out = append(out, j)
	}
	slices.SortFunc(out, func(a, b job) int { return strings.Compare(a.name, b.name) })
	return out, t.err
}

// arrivals is the order in which runs come, and the machines by their rank,
// which breaks ties.
type arrivals struct {
	machines []machine
	jobs     []job
	all      []job // of the trace
}

// inflated is how much of all GPUs is asked for in the end.
const inflated = 1.3

// arrivalsOf makes the order of a seed as the authors' simulator does, so that
// every seed can be compared with theirs.
func arrivalsOf(machines []machine, runs []job, seed int64) arrivals {
	r := rand.New(rand.NewSource(seed))
	r.Int()
	a := arrivals{jobs: slices.Clone(runs), all: runs}
	r.Shuffle(len(a.jobs), func(i, j int) { a.jobs[i], a.jobs[j] = a.jobs[j], a.jobs[i] })
	capacity, sum := 0, 0
	for _, m := range machines {
		capacity += 1000 * m.gpus
	}
	for i := range a.jobs {
		sum += a.jobs[i].size()
	}
	limit := inflated * float64(capacity)
	for float64(sum) > limit {
		i := r.Intn(len(a.jobs))
		sum -= a.jobs[i].size()
		a.jobs = slices.Delete(a.jobs, i, i+1)
	}
	for {
		j := runs[r.Intn(len(runs))]
		if float64(sum+j.milli) > limit { // of one GPU, as theirs
			break
		}
		sum += j.size()
		a.jobs = append(a.jobs, j)
	}
	a.machines = make([]machine, len(machines))
	for i, rank := range r.Perm(len(machines)) {
		a.machines[rank] = machines[i]
	}
	return a
}
