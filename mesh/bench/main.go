// Bench measures the mesh's userspace network beside others, on Linux and as
// root: two ends in two network namespaces that it makes itself and joins by a
// pair of virtual Ethernet interfaces. It asserts nothing and leaves nothing
// behind.
//
//	go run ./mesh/bench
//
// With -nebula PATH it measures nebula too; nebula-cert is in the same folder.
//
// Each end is a process of its own, this program, that hosts the network
// measured and the program that uses it. In every round each network is
// measured once, in turn, so that what else the machine does meets all alike.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	rounds := flag.Int("rounds", 3, "rounds, of which medians are printed")
	load := flag.Duration("load", 5*time.Second, "length of each throughput test")
	trips := flag.Int("trips", 2000, "round trips for each latency")
	quiet := flag.Duration("quiet", time.Minute, "time from the last load to the measurement of memory")
	only := flag.String("only", "", "networks to measure, separated by commas (default all)")
	profiles := flag.String("profiles", "", "folder for processor profiles of the ends during the loads")
	nebula := flag.String("nebula", "", "program of nebula to measure as well, with nebula-cert beside it")
	folder := flag.String("folder", "", "internal: for what programs beside this one write")
	end := flag.String("end", "", "internal: be an end of this network")
	flag.Parse()
	t := tools{*nebula, *folder}
	err := errors.New("needs root, for network namespaces")
	switch {
	case *end != "":
		var place int
		if place, err = strconv.Atoi(flag.Arg(0)); err == nil {
			err = serveEnd(*end, place, *profiles, t)
		}
	case os.Getuid() == 0:
		err = bench(*only, *rounds, *trips, *load, *quiet, *profiles, t)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// figures of one network; those of rounds have a value for each.
type figures struct {
	one, four         []float64 // Mbit/s of one and of four TCP streams
	costOne, costFour []float64 // CPU-seconds per GB, of server and client together
	relay             []float64 // CPU-seconds per GB, of the relay with one stream
	trip              []float64 // ms, median TCP round trip of 64 bytes
	idle, after       float64   // MiB, RSS of the process at the largest end that carries the network
}

func bench(only string, rounds, trips int, load, quiet time.Duration, profiles string, t tools) (err error) {
	l, err := newLab(profiles, t)
	if err != nil {
		return err
	}
	defer l.close()
	var groups []*group
	for _, s := range systemsWith(t) {
		if only != "" && !slices.Contains(strings.Split(only, ","), s.name) {
			continue
		}
		g, err := l.start(s)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		groups = append(groups, g)
	}
	all := make([]figures, len(groups))
	time.Sleep(10 * time.Second) // what starting has left behind settles
	for i, g := range groups {
		if all[i].idle, err = g.memory(); err != nil {
			return err
		}
	}
	for range rounds {
		for i, g := range groups {
			if err := g.measure(&all[i], trips, load); err != nil {
				return fmt.Errorf("%s: %w", g.system.name, err)
			}
		}
	}
	time.Sleep(quiet)
	for i, g := range groups {
		if all[i].after, err = g.memory(); err != nil {
			return err
		}
	}
	return print(groups, all, rounds, quiet)
}

func print(groups []*group, all []figures, rounds int, quiet time.Duration) error {
	machine, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("Both ends share this machine. TCP through each network, medians of %d rounds [least–most]; CPU-s/GB and RSS are\n"+
		"of the ends with the programs that send and receive (RSS: of nebula alone); RSS after load is %v later. Load when it ended: %.4s\n\n", rounds, quiet, machine)
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	row := func(cells ...string) { // all rows have as many cells, so that they stand below each other
		fmt.Fprintln(w, strings.Join(append(cells, make([]string, len(columns)-len(cells))...), "\t"))
	}
	row(columns...)
	for i, g := range groups {
		f := &all[i]
		row(g.system.name, middle(f.one, 0), middle(f.costOne, 1), middle(f.four, 0), middle(f.costFour, 1), middle(f.trip, 3),
			fmt.Sprintf("%.1f", f.idle), fmt.Sprintf("%.1f", f.after))
		if len(f.relay) > 0 {
			row("  its relay", "", middle(f.relay, 1))
		}
		for j, other := range groups {
			if !slices.Contains(g.system.against, other.system.name) {
				continue
			}
			than := &all[j]
			row("  of "+other.system.name, shares(f.one, than.one), shares(f.costOne, than.costOne), shares(f.four, than.four), shares(f.costFour, than.costFour))
		}
		if g.system.goals != nil {
			row(append([]string{"  goal"}, g.system.goals...)...)
		}
	}
	return w.Flush()
}

var columns = []string{"NETWORK", "1 STREAM Mbit/s", "CPU-s/GB", "4 STREAMS Mbit/s", "CPU-s/GB", "ROUND TRIP p50 ms", "RSS IDLE MiB", "RSS AFTER LOAD MiB"}

// middle writes a median with its range.
func middle(values []float64, digits int) string {
	if len(values) == 0 {
		return "-"
	}
	values = slices.Sorted(slices.Values(values))
	return fmt.Sprintf("%.*f [%.*f–%.*f]", digits, values[len(values)/2], digits, values[0], digits, values[len(values)-1])
}

// shares writes what values are of others, round by round.
func shares(values, others []float64) string {
	out := make([]float64, len(values))
	for i := range values {
		out[i] = values[i] / others[i]
	}
	return middle(out, 2)
}

// measure is one round of one network.
func (g *group) measure(f *figures, trips int, load time.Duration) error {
	us, err := g.ends[client].ask("trip %d", trips)
	if err != nil {
		return err
	}
	f.trip = append(f.trip, us[0]/1000)
	for _, to := range []struct {
		streams           int
		rate, cost, relay *[]float64
	}{{1, &f.one, &f.costOne, &f.relay}, {4, &f.four, &f.costFour, nil}} {
		before, err := g.processor()
		if err != nil {
			return err
		}
		sent, err := g.ends[client].ask("load %d %d", to.streams, load)
		if err != nil {
			return err
		}
		after, err := g.processor()
		if err != nil {
			return err
		}
		bytes, took := sent[0], time.Duration(sent[1])
		perGB := func(place int) float64 { return (after[place] - before[place]).Seconds() / (bytes / 1e9) }
		*to.rate = append(*to.rate, 8*bytes/1e6/took.Seconds())
		*to.cost = append(*to.cost, perGB(server)+perGB(client))
		if g.system.relayed && to.relay != nil {
			*to.relay = append(*to.relay, perGB(relay))
		}
	}
	return nil
}

// processor is the processor time of each end. /proc/PID/schedstat counts one
// thread, so threads are added.
func (g *group) processor() (total [places]time.Duration, err error) {
	for i, e := range g.ends {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", e.pid()))
		if err != nil || len(threads) == 0 {
			return total, fmt.Errorf("processor time cannot be read: %w", err)
		}
		if e.daemon != 0 {
			more, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", e.daemon)) // the pattern is right
			threads = append(threads, more...)
		}
		for _, t := range threads {
			b, err := os.ReadFile(t)
			if err != nil {
				continue // a thread has ended
			}
			ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
			if err != nil {
				return total, err
			}
			total[i] += time.Duration(ns)
		}
	}
	return total, nil
}

// memory is the RSS in MiB of the process that carries the network, at the
// largest end.
func (g *group) memory() (largest float64, err error) {
	for _, e := range g.ends {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmp.Or(e.daemon, e.pid())))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); f[0] == "VmRSS:" {
				kib, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					return 0, err
				}
				largest = max(largest, kib/1024)
			}
		}
	}
	return largest, nil
}
