// Package task holds the nouns of dispatch: what is to run ([Spec]), what a
// machine answers ([Verdict]), what happens to it ([Event]), what the ledger
// keeps of it (the records), and how those facts add up to a state ([Status]).
//
// It does no I/O and knows no machine.
package task

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/balanceai/balance/mesh/wire"
)

// Drivers, which start a run.
const (
	DriverProcess = "process" // a program of the machine
	DriverImage   = "image"   // an OCI image
)

// What a run holds of a machine when it asks for nothing.
const (
	DefaultCPU    = Core / 10
	DefaultMemory = 64 * MiB
)

// DefaultOutput bounds what is kept of a run's standard output and error
// together.
const DefaultOutput = GiB

// Levels of isolation between a run and its machine, the weakest first. Package
// isolate builds them.
const (
	LevelProcess = "process" // none: the user who runs Balance, with that user's files
	LevelSandbox = "sandbox" // nothing of the machine but the system's programs, and no network
)

// LevelContainer is the isolation of each run that has an image, and of no other: a
// container of an engine such as podman, with nothing of the machine and no network.
// It is no step between the others.
const LevelContainer = "container"

// maxReference bounds the reference of an image, in bytes.
const maxReference = 512

// checkImage refuses what is no reference of an image.
func (s *Spec) checkImage() error {
	switch {
	case s.Driver != DriverImage && (s.Image != "" || s.Isolation == LevelContainer):
		return errors.New("a container without an image: say which image it is")
	case s.Driver != DriverImage:
		return nil
	case s.Image == "":
		return errors.New("driver image without an image")
	case len(s.Image) > maxReference || !reference.MatchString(s.Image) || path.Clean(s.Image) != s.Image:
		return fmt.Errorf("%.80q is no reference of an image", s.Image)
	}
	return nil
}

// reference is what a reference of an image is written with, such as
// localhost/tool:1 or example.org/tool@sha256:….
var reference = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:@-]*$`)

// MinPIDs is the smallest limit of processes and threads: those that start a run
// count as well.
const MinPIDs = 16

// Spec says what to run. It is a value: equal specs mean the same run.
type Spec struct {
	Agent    string            `cbor:"1,keyasint,omitempty" json:"agent,omitempty"`     // name of the manifest; empty for a bare command
	Manifest wire.Hash         `cbor:"2,keyasint" json:"manifest,omitzero"`             // SHA-256 of the manifest; zero for a bare command
	Driver   string            `cbor:"3,keyasint" json:"driver"`                        // DriverProcess or DriverImage
	Image    string            `cbor:"4,keyasint,omitempty" json:"image,omitempty"`     // OCI reference for DriverImage
	Command  []string          `cbor:"5,keyasint" json:"command"`                       // program and arguments
	Env      map[string]string `cbor:"6,keyasint,omitempty" json:"env,omitempty"`       //
	Needs    Needs             `cbor:"7,keyasint" json:"needs"`                         //
	Inputs   []Input           `cbor:"8,keyasint,omitempty" json:"inputs,omitempty"`    // laid out in the work folder before the start
	Outputs  []string          `cbor:"9,keyasint,omitempty" json:"outputs,omitempty"`   // paths in the work folder that are brought back
	Limits   Limits            `cbor:"10,keyasint" json:"limits"`                       //
	Node     string            `cbor:"11,keyasint,omitempty" json:"node,omitempty"`     // name or id of the one machine that may run it
	Stdin    bool              `cbor:"12,keyasint,omitempty" json:"stdin,omitempty"`    // standard input follows
	Detached bool              `cbor:"13,keyasint,omitempty" json:"detached,omitempty"` // nobody waits at a terminal
	Prefer   []string          `cbor:"14,keyasint,omitempty" json:"prefer,omitempty"`   // labels of machines that the run had rather be on, the most wanted first
	Wait     time.Duration     `cbor:"16,keyasint,omitempty" json:"wait_ns,omitempty"`  // for a machine, where one could take it later; 0: not at all
	Priority int               `cbor:"17,keyasint,omitempty" json:"priority,omitempty"` // in line before runs of its own owner that have less, on the owner's machines

	// Isolation is the weakest level that will do, of package isolate; empty for
	// what the machine's owner wants.
	Isolation string `cbor:"20,keyasint,omitempty" json:"isolation,omitempty"`

	// Network are the hosts that a run in a sandbox may reach, through a proxy:
	// example.org, example.org:8443, *.example.org; see package egress.
	Network []string `cbor:"21,keyasint,omitempty" json:"network,omitempty"`

	// Secrets names what the run gets of its submitter's secrets; their values are
	// in no record.
	Secrets []Secret `cbor:"22,keyasint,omitempty" json:"secrets,omitempty"`

	TTY  *Terminal `cbor:"24,keyasint,omitempty" json:"tty,omitempty"`  // its standard input, output and error are a terminal; nil for pipes
	Open bool      `cbor:"25,keyasint,omitempty" json:"open,omitempty"` // who breaks off sending standard input does not end it: the next one goes on

	Retry  Retry         `cbor:"27,keyasint,omitempty" json:"retry,omitempty"`    // whether it is started again when its machine is lost
	Lease  time.Duration `cbor:"28,keyasint,omitempty" json:"lease_ns,omitempty"` // how long its machine goes on without its submitter, where it may be started again; 0: [lease.Default]
	Models []Model       `cbor:"32,keyasint,omitempty" json:"models,omitempty"`   // that it asks; the first is the one that it uses unless it says so

	Serve *Serve `cbor:"33,keyasint,omitempty" json:"serve,omitempty"` // it answers at a port, until it is ended

	Gang   *Gang   `cbor:"36,keyasint,omitempty" json:"gang,omitempty"`   // one program on several machines
	Member *Member `cbor:"37,keyasint,omitempty" json:"member,omitempty"` // or a rank of one
}

// Needs are what a machine must have free. Zero values ask for nothing, but CPU
// and Memory, which then count as [DefaultCPU] and [DefaultMemory].
type Needs struct {
	CPU       CPU      `cbor:"1,keyasint,omitempty" json:"cpu_milli,omitempty"`
	Memory    Bytes    `cbor:"2,keyasint,omitempty" json:"memory,omitempty"`
	Disk      Bytes    `cbor:"3,keyasint,omitempty" json:"disk,omitempty"`
	GPUs      int      `cbor:"4,keyasint,omitempty" json:"gpus,omitempty"`       // devices
	VRAM      Bytes    `cbor:"5,keyasint,omitempty" json:"vram,omitempty"`       // on each device; without GPUs it asks for one device
	GPUModels []string `cbor:"6,keyasint,omitempty" json:"gpu_models,omitempty"` // any of these words in the device's name
	Arch      []string `cbor:"7,keyasint,omitempty" json:"arch,omitempty"`       // any of these GOARCH values
	OS        []string `cbor:"8,keyasint,omitempty" json:"os,omitempty"`         // any of these GOOS values
	Labels    []string `cbor:"9,keyasint,omitempty" json:"labels,omitempty"`     // all of them
	Engines   []string `cbor:"10,keyasint,omitempty" json:"engines,omitempty"`   // all of them, such as ollama
	Share     int      `cbor:"11,keyasint,omitempty" json:"gpu_share,omitempty"` // thousandths of each device, beside other runs of its owner; 0: all of it
}

// Held returns the needs with what is implied written out: what a machine
// reserves.
func (n Needs) Held() Needs {
	if n.CPU == 0 {
		n.CPU = DefaultCPU
	}
	if n.Memory == 0 {
		n.Memory = DefaultMemory
	}
	if n.GPUs == 0 && (n.VRAM > 0 || len(n.GPUModels) > 0 || n.Share > 0) {
		n.GPUs = 1
	}
	return n
}

// Terminal is the size of a run's terminal, in characters.
type Terminal struct {
	Rows uint16 `cbor:"1,keyasint,omitempty" json:"rows"`
	Cols uint16 `cbor:"2,keyasint,omitempty" json:"cols"`
}

// Limits bound a run. Zero means the machine's own limit.
type Limits struct {
	Time   time.Duration `cbor:"1,keyasint,omitempty" json:"time_ns,omitempty"` // wall clock
	Output Bytes         `cbor:"2,keyasint,omitempty" json:"output,omitempty"`  // of standard output and error together
	Memory Bytes         `cbor:"3,keyasint,omitempty" json:"memory,omitempty"`  // of all its processes together, as are the next two
	CPU    CPU           `cbor:"4,keyasint,omitempty" json:"cpu_milli,omitempty"`
	PIDs   int           `cbor:"5,keyasint,omitempty" json:"pids,omitempty"`   // processes and threads
	Disk   Bytes         `cbor:"6,keyasint,omitempty" json:"disk,omitempty"`   // of its work folder and its temporary files
	Tokens Tokens        `cbor:"7,keyasint,omitempty" json:"tokens,omitempty"` // that models read and write for it
}

// Input is a file or folder that travels to the machine.
type Input struct {
	Path string    `cbor:"1,keyasint" json:"path"` // in the run's work folder, relative, with slashes
	Tree wire.Hash `cbor:"2,keyasint" json:"tree"` // of the listing of its files; see package blob
	Size Bytes     `cbor:"3,keyasint" json:"size"` // of all its files
	Kind string    `cbor:"4,keyasint" json:"kind"` // "file" or "folder"
}

// NewID makes a run's id: "r-" and 80 random bits in base32.
func NewID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return "r-" + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// ValidID reports whether s has the form of a run's id, so that it can name a
// topic and a folder.
func ValidID(s string) bool {
	rest, ok := strings.CutPrefix(s, "r-")
	return ok && len(rest) == 16 && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// Check refuses a spec that no machine could run. Both ends call it: the
// executor trusts nobody.
func (s *Spec) Check() error {
	switch {
	case len(s.Command) == 0 || s.Command[0] == "":
		return errors.New("the run has no command")
	case s.Driver != DriverProcess && s.Driver != DriverImage:
		return fmt.Errorf("unknown driver %q", s.Driver)
	case s.Needs.GPUs < 0 || s.Needs.GPUs > 1024:
		return fmt.Errorf("%d GPUs", s.Needs.GPUs)
	case s.Needs.Share < 0 || s.Needs.Share >= 1000:
		return fmt.Errorf("%d thousandths of a GPU", s.Needs.Share)
	case s.Open && !s.Stdin:
		return errors.New("standard input that stays open, of a run that has none")
	case s.Limits.Time < 0:
		return fmt.Errorf("time limit %v", s.Limits.Time)
	case s.Limits.PIDs < 0 || s.Limits.PIDs > 0 && s.Limits.PIDs < MinPIDs:
		return fmt.Errorf("limit of %d processes: give it %d at least", s.Limits.PIDs, MinPIDs)
	case len(s.Network) > 256:
		return fmt.Errorf("network: %d hosts: the limit is 256", len(s.Network))
	case s.Isolation != "" && s.Isolation != LevelProcess && s.Isolation != LevelSandbox && s.Isolation != LevelContainer:
		return fmt.Errorf("unknown isolation %q: it is %s or %s, or %s with an image", s.Isolation, LevelProcess, LevelSandbox, LevelContainer)
	}
	if err := errors.Join(s.checkImage(), s.checkRetry(), s.checkQueue(), s.checkSecrets()); err != nil {
		return err
	}
	if err := errors.Join(s.checkGang(), s.checkServe()); err != nil {
		return err
	}
	for _, arg := range s.Command {
		if strings.ContainsRune(arg, 0) {
			return errors.New("an argument has a NUL byte")
		}
	}
	for k, v := range s.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return fmt.Errorf("environment variable %q cannot be set", k)
		}
	}
	seen := map[string]bool{}
	for _, in := range s.Inputs {
		if err := CheckPath(in.Path); err != nil {
			return fmt.Errorf("input %w", err)
		}
		if in.Kind != KindFile && in.Kind != KindFolder {
			return fmt.Errorf("input %q: unknown kind %q", in.Path, in.Kind)
		}
		if seen[in.Path] {
			return fmt.Errorf("input %q is there twice", in.Path)
		}
		seen[in.Path] = true
	}
	for _, out := range s.Outputs {
		if err := CheckPath(out); err != nil {
			return fmt.Errorf("output %w", err)
		}
	}
	return checkModels(s.Models)
}

// Kinds of [Input].
const (
	KindFile   = "file"
	KindFolder = "folder"
)

// CheckPath refuses a path that is not plainly inside the work folder, whatever
// system reads it. It is the first of two walls: files are opened through
// os.Root.
func CheckPath(p string) error {
	switch {
	case p == "" || len(p) > 4096:
		return fmt.Errorf("path %.80q: empty or too long", p)
	case strings.ContainsAny(p, "\x00\\:"):
		return fmt.Errorf("path %q has a NUL, backslash or colon", p)
	case path.IsAbs(p) || path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../"):
		return fmt.Errorf("path %q leaves its folder or is not in its shortest form", p)
	}
	return nil
}
