// Placebench scores placement by the procedure of "Beware of Fragmentation"
// (USENIX ATC 2023): runs of a trace arrive at a cluster of GPU machines until
// they have asked for 130 % of all GPUs; each is placed at once or not at all,
// and none departs. What part of all GPUs is then in use? The policy of the
// product, which is package place itself, stands beside others.
//
//	placebench --nodes FILE --pods FILE --seeds 42-51 [--policy NAME] [--json]
//	placebench --nodes FILE --traces DIR             # every trace of a folder
//	placebench --nodes FILE --pods FILE --dispatchers 10,100 --stale 1s,5s,30s
//
// The files have the columns of the public openb trace: sn, cpu_milli,
// memory_mib, gpu, model; and name, cpu_milli, memory_mib, num_gpu, gpu_milli,
// gpu_spec.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	if err := bench(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "placebench:", err)
		os.Exit(1)
	}
}

// options are what the flags say.
type options struct {
	nodes, pods, traces string
	seeds               []int64
	policies            []string
	json                bool
	dispatchers         []int
	stale               []time.Duration
	churn               bool
}

func parse(args []string) (o options, err error) {
	var seeds, policies, dispatchers, stale string
	f := flag.NewFlagSet("placebench", flag.ContinueOnError)
	f.StringVar(&o.nodes, "nodes", "", "CSV file of the machines")
	f.StringVar(&o.pods, "pods", "", "CSV file of the runs")
	f.StringVar(&o.traces, "traces", "", "folder of CSV files of runs, each scored by itself")
	f.StringVar(&seeds, "seeds", "42-51", "seeds of the order of arrival, A-B")
	f.StringVar(&policies, "policy", "", "one policy, or several with commas between them (default: all)")
	f.BoolVar(&o.json, "json", false, "a JSON object for each policy")
	f.StringVar(&dispatchers, "dispatchers", "", "instead: so many machines decide, each by itself, such as 10,100")
	f.StringVar(&stale, "stale", "1s,5s,30s", "how old their views are")
	f.BoolVar(&o.churn, "churn", false, "runs end, and others come for them")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.nodes == "" || o.pods == "" == (o.traces == "") {
		return o, errors.New("want --nodes FILE and one of --pods FILE, --traces DIR")
	}
	a, b, ok := strings.Cut(seeds, "-")
	from, err1 := strconv.ParseInt(a, 10, 64)
	to, err2 := strconv.ParseInt(b, 10, 64)
	if !ok {
		to, err2 = from, nil
	}
	if errors.Join(err1, err2) != nil || from > to || to-from > 1000 {
		return o, fmt.Errorf("--seeds %q: want A-B", seeds)
	}
	for s := from; s <= to; s++ {
		o.seeds = append(o.seeds, s)
	}
	o.policies = slices.Collect(policyNames())
	if policies != "" {
		o.policies = strings.Split(policies, ",")
	}
	for _, p := range o.policies {
		if newPolicy[p] == nil {
			return o, fmt.Errorf("no policy %q: there are %s", p, strings.Join(slices.Collect(policyNames()), ", "))
		}
	}
	return o, o.parseSimulation(dispatchers, stale)
}

func (o *options) parseSimulation(dispatchers, stale string) error {
	if dispatchers == "" {
		return nil
	}
	for s := range strings.SplitSeq(dispatchers, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("--dispatchers: %q is no number", s)
		}
		o.dispatchers = append(o.dispatchers, n)
	}
	for s := range strings.SplitSeq(stale, ",") {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return fmt.Errorf("--stale: %q is no duration", s)
		}
		o.stale = append(o.stale, d)
	}
	return nil
}

func bench(args []string, w io.Writer) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	files := []string{o.pods}
	if o.traces != "" {
		if files, err = filepath.Glob(filepath.Join(o.traces, "*pod_list*.csv")); err != nil || len(files) == 0 {
			return fmt.Errorf("no *pod_list*.csv in %s", o.traces)
		}
	}
	machines, err := readMachines(o.nodes)
	if err != nil {
		return err
	}
	for _, file := range files {
		runs, err := readRuns(file)
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(filepath.Base(file), ".csv")
		if len(o.dispatchers) > 0 {
			err = simulations(w, &o, name, machines, runs)
		} else {
			err = scores(w, &o, name, machines, runs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// score is how a policy did, in percent of all GPUs.
type score struct {
	Policy   string  `json:"policy"`
	Seeds    int     `json:"seeds"`
	Alloc100 float64 `json:"alloc100"` // when runs for 100 % of them have come
	Alloc130 float64 `json:"alloc130"`

	dev100, dev130 float64
}

func scores(w io.Writer, o *options, trace string, machines []machine, runs []job) error {
	if !o.json {
		if _, err := fmt.Fprintf(w, "%s: %d machines, %d runs in the trace, %d seeds; %% of all GPUs in use\n%-12s %16s %16s\n",
			trace, len(machines), len(runs), len(o.seeds), "policy", "at 100 %", "at 130 %"); err != nil {
			return err
		}
	}
	for _, p := range o.policies {
		s := measure(p, o.seeds, machines, runs)
		var err error
		if o.json {
			err = json.NewEncoder(w).Encode(s)
		} else {
			_, err = fmt.Fprintf(w, "%-12s %8.2f ± %5.2f %8.2f ± %5.2f%s\n", p, s.Alloc100, s.dev100, s.Alloc130, s.dev130, published(trace, p))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// atOnce is how many seeds are scored at a time.
const atOnce = 2

func measure(policy string, seeds []int64, machines []machine, runs []job) score {
	a, b := make([]float64, len(seeds)), make([]float64, len(seeds))
	var all sync.WaitGroup
	places := make(chan struct{}, atOnce)
	for i, seed := range seeds {
		places <- struct{}{}
		all.Go(func() {
			a[i], b[i] = onePass(newPolicy[policy], arrivalsOf(machines, runs, seed))
			<-places
		})
	}
	all.Wait()
	s := score{Policy: policy, Seeds: len(seeds)}
	s.Alloc100, s.dev100 = meanOf(a)
	s.Alloc130, s.dev130 = meanOf(b)
	return s
}

// meanOf returns the mean, to two digits, and the deviation of the sample.
func meanOf(list []float64) (mean, dev float64) {
	for _, v := range list {
		mean += v / float64(len(list))
	}
	for _, v := range list {
		dev += (v - mean) * (v - mean)
	}
	return math.Round(100*mean) / 100, math.Sqrt(dev / float64(max(1, len(list)-1)))
}

// onePass places all runs of an order, and returns how much of all GPUs is in
// use when runs for 100 % and for 130 % of them have come: the mean over those
// runs for which that is so, rounded.
func onePass(make policyMaker, a arrivals) (at100, at130 float64) {
	c := newCluster(a.machines)
	p := make(c, &a)
	var n100, n130 float64
	arrived, used, last := 0, 0, 0.0
	for i := range a.jobs {
		j := &a.jobs[i]
		arrived += j.size()
		if m, devices := p.place(j); m >= 0 {
			c.take(m, j, devices)
			p.changed(m)
			used += j.size()
		}
		last = 100 * float64(used) / float64(c.capacity)
		switch math.RoundToEven(100 * float64(arrived) / float64(c.capacity)) {
		case 100:
			at100, n100 = at100+last, n100+1
		case 130:
			at130, n130 = at130+last, n130+1
		}
	}
	return at100 / max(1, n100), cmpOr(at130/max(1, n130), last)
}

func cmpOr(a, b float64) float64 {
	if a != 0 {
		return a
	}
	return b
}
