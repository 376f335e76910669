// Bench measures the mesh's userspace network beside others, on Linux and as
// root: two ends in two network namespaces that it makes itself and joins by a
// pair of virtual Ethernet interfaces. It asserts nothing and leaves nothing
// behind.
//
//	go run ./mesh/bench
//
// Each end is a process of its own, this program, that hosts the network
// measured and the program that uses it. In every round each network is
// measured once, in turn, so that what else the machine does meets all alike.
package main

import (
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
	end := flag.String("end", "", "internal: be an end of this network")
	flag.Parse()
	err := errors.New("needs root, for network namespaces")
	switch {
	case *end != "":
		err = serveEnd(*end, flag.Arg(0) == "server", *profiles)
	case os.Getuid() == 0:
		err = bench(*only, *rounds, *trips, *load, *quiet, *profiles)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// figures of one network; those of rounds have a value for each.
type figures struct {
	one, four         []float64 // Mbit/s of one and of four TCP streams
	costOne, costFour []float64 // CPU-seconds per GB, of both ends together
	trip              []float64 // ms, median TCP round trip of 64 bytes
	idle, after       float64   // MiB, RSS of the larger end
}

func bench(only string, rounds, trips int, load, quiet time.Duration, profiles string) (err error) {
	l, err := newLab(profiles)
	if err != nil {
		return err
	}
	defer l.close()
	var pairs []*pair
	for _, s := range systems {
		if only != "" && !slices.Contains(strings.Split(only, ","), s.name) {
			continue
		}
		p, err := l.start(s)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		pairs = append(pairs, p)
	}
	all := make([]figures, len(pairs))
	time.Sleep(10 * time.Second) // what starting has left behind settles
	for i, p := range pairs {
		if all[i].idle, err = p.memory(); err != nil {
			return err
		}
	}
	for range rounds {
		for i, p := range pairs {
			if err := p.measure(&all[i], trips, load); err != nil {
				return fmt.Errorf("%s: %w", p.system.name, err)
			}
		}
	}
	time.Sleep(quiet)
	for i, p := range pairs {
		if all[i].after, err = p.memory(); err != nil {
			return err
		}
	}
	return print(pairs, all, rounds, quiet)
}

func print(pairs []*pair, all []figures, rounds int, quiet time.Duration) error {
	machine, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("Both ends share this machine. TCP through each network, medians of %d rounds [least–most]; CPU-s/GB and RSS are\n"+
		"of the ends with the programs that send and receive; RSS after load is %v later. Load when it ended: %.4s\n\n", rounds, quiet, machine)
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NETWORK\t1 STREAM Mbit/s\tCPU-s/GB\t4 STREAMS Mbit/s\tCPU-s/GB\tROUND TRIP p50 ms\tRSS IDLE MiB\tRSS AFTER LOAD MiB")
	for i, p := range pairs {
		f := &all[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%.1f\t%.1f\n", p.system.name,
			middle(f.one, 0), middle(f.costOne, 1), middle(f.four, 0), middle(f.costFour, 1), middle(f.trip, 3), f.idle, f.after)
		if p.system.goals != "" {
			fmt.Fprintf(w, "  goal\t%s\n", p.system.goals)
		}
	}
	return w.Flush()
}

// middle writes a median with its range.
func middle(values []float64, digits int) string {
	if len(values) == 0 {
		return "-"
	}
	slices.Sort(values)
	return fmt.Sprintf("%.*f [%.*f–%.*f]", digits, values[len(values)/2], digits, values[0], digits, values[len(values)-1])
}

// measure is one round of one network.
func (p *pair) measure(f *figures, trips int, load time.Duration) error {
	us, err := p.client.ask("trip %d", trips)
	if err != nil {
		return err
	}
	f.trip = append(f.trip, us[0]/1000)
	for _, to := range []struct {
		streams    int
		rate, cost *[]float64
	}{{1, &f.one, &f.costOne}, {4, &f.four, &f.costFour}} {
		before, err := p.processor()
		if err != nil {
			return err
		}
		sent, err := p.client.ask("load %d %d", to.streams, load)
		if err != nil {
			return err
		}
		after, err := p.processor()
		if err != nil {
			return err
		}
		bytes, took := sent[0], time.Duration(sent[1])
		*to.rate = append(*to.rate, 8*bytes/1e6/took.Seconds())
		*to.cost = append(*to.cost, (after-before).Seconds()/(bytes/1e9))
	}
	return nil
}

// processor is the processor time of both ends. /proc/PID/schedstat counts one
// thread, so threads are added.
func (p *pair) processor() (total time.Duration, err error) {
	for _, e := range []*end{p.server, p.client} {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", e.pid()))
		if err != nil || len(threads) == 0 {
			return 0, fmt.Errorf("processor time cannot be read: %w", err)
		}
		for _, t := range threads {
			b, err := os.ReadFile(t)
			if err != nil {
				continue // a thread has ended
			}
			ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
			if err != nil {
				return 0, err
			}
			total += time.Duration(ns)
		}
	}
	return total, nil
}

// memory is the RSS of the larger end in MiB.
func (p *pair) memory() (largest float64, err error) {
	for _, e := range []*end{p.server, p.client} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.pid()))
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
