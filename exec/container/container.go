// Package container runs a program of an OCI image, through the interface that
// docker has and podman has too.
//
// An [Engine] is found by its socket. Of each container that is made, all but the
// image, the command and its variables is the node's: no privilege, no capability,
// a root that is read-only, no network, and no folder of the machine but the run's
// two. What the engine has made of that is read back before the container is
// started, and its limits once more from the kernel: an engine may leave out in
// silence what it cannot do, and such a container is not let run.
//
// What a supervisor starts and follows is not the container, which belongs to the
// engine, but this program once more, under [Name]. It makes the container, passes
// on its input, output and signals, and ends as it ends. Whatever became of that,
// the supervisor then has it removed, by this program under the same name.
package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/isolate/launch"
)

// Engine is what makes containers on this machine.
type Engine struct {
	Socket   string
	Name     string // podman or docker
	Version  string
	Rootless bool // it has no more rights than the user whose it is

	// What it can limit.
	Memory, CPU, PIDs bool
}

// Sockets returns where the engine of a user may be, the first choice first.
// getenv reads a variable.
func Sockets(getenv func(string) string) []string {
	var out []string
	for _, v := range []string{"CONTAINER_HOST", "DOCKER_HOST"} {
		if path, ok := strings.CutPrefix(getenv(v), "unix://"); ok {
			out = append(out, path)
		}
	}
	if dir := getenv("XDG_RUNTIME_DIR"); dir != "" {
		out = append(out, filepath.Join(dir, "podman/podman.sock"), filepath.Join(dir, "docker.sock"))
	}
	return append(out, "/run/podman/podman.sock", "/var/run/docker.sock")
}

// Find returns the first engine that answers at one of the sockets, or why there
// is none.
func Find(ctx context.Context, sockets []string) (*Engine, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("containers are for Linux")
	}
	why := errors.New("neither podman nor docker has a socket on this machine")
	for _, path := range sockets {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		e, err := ask(ctx, path)
		if err == nil {
			return e, nil
		}
		why = err
	}
	return nil, why
}

// ask has an engine say what it is.
func ask(ctx context.Context, socket string) (*Engine, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c := dial(socket)
	defer c.close()
	var v version
	if err := c.ask(ctx, http.MethodGet, "/version", nil, nil, &v); err != nil {
		return nil, err
	}
	var i info
	if err := c.ask(ctx, http.MethodGet, "/info", nil, nil, &i); err != nil {
		return nil, err
	}
	return engine(socket, v, i), nil
}

// engine takes what it says. It is not believed about limits where it is known to
// leave them out: without rights, in control groups of version 1.
func engine(socket string, v version, i info) *Engine {
	e := &Engine{Socket: socket, Name: "docker", Version: v.Version}
	for _, c := range v.Components {
		if strings.HasPrefix(c.Name, "Podman") {
			e.Name = "podman"
		}
	}
	e.Rootless = i.Rootless || slices.ContainsFunc(i.SecurityOptions, func(s string) bool { return strings.HasPrefix(s, "name=rootless") })
	holds := !e.Rootless || i.CgroupVersion == "2"
	e.Memory, e.CPU, e.PIDs = holds && i.MemoryLimit, holds && i.CPUCfsQuota, holds && i.PidsLimit
	return e
}

// String names the engine as an offer has it.
func (e *Engine) String() string {
	s := e.Name + " " + e.Version
	if e.Rootless {
		s += ", rootless"
	}
	return s
}

// Lacks names the limits that the engine cannot hold.
func (e *Engine) Lacks(l Limits) []string {
	var out []string
	for _, limit := range []struct {
		name        string
		wanted, can bool
	}{{"memory", l.Memory > 0, e.Memory}, {"cpu", l.CPU > 0, e.CPU}, {"pids", l.PIDs > 0, e.PIDs}} {
		if limit.wanted && !limit.can {
			out = append(out, limit.name)
		}
	}
	return out
}

// Image is one that an engine holds.
type Image struct {
	ID    string   // its digest
	Names []string // by tag and by digest
	Size  uint64   // bytes
}

// Images lists those that have a name.
func (e *Engine) Images(ctx context.Context) ([]Image, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c := dial(e.Socket)
	defer c.close()
	var all []image
	if err := c.ask(ctx, http.MethodGet, "/images/json", nil, nil, &all); err != nil {
		return nil, err
	}
	return named(all), nil
}

func named(all []image) []Image {
	var out []Image
	for _, im := range all {
		names := slices.DeleteFunc(slices.Concat(im.RepoTags, im.RepoDigests), func(s string) bool { return strings.Contains(s, "<none>") })
		if len(names) > 0 {
			out = append(out, Image{ID: im.ID, Names: names, Size: im.Size})
		}
	}
	return out
}

// Has returns why an image cannot be run here: [ErrNoImage] where it is not here.
func (e *Engine) Has(ctx context.Context, ref string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c := dial(e.Socket)
	defer c.close()
	im, err := c.image(ctx, ref)
	if err != nil {
		return err
	}
	return im.suits()
}

// suits returns why an image is not for this machine.
func (im *image) suits() error {
	if im.OS != "linux" || im.Architecture != runtime.GOARCH {
		return fmt.Errorf("the image is for %.20s/%.20s, not for linux/%s", im.OS, im.Architecture, runtime.GOARCH)
	}
	return nil
}

// Pause has the container of a run stand still, or go on.
func (e *Engine) Pause(ctx context.Context, run string, still bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c := dial(e.Socket)
	defer c.close()
	what := "unpause"
	if still {
		what = "pause"
	}
	return c.post(ctx, name(run), what, nil)
}

// Remove removes the container of a run, whatever it does. None is no error.
func (e *Engine) Remove(ctx context.Context, run string) error { return remove(ctx, e.Socket, run) }

func remove(ctx context.Context, socket, run string) error {
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	c := dial(socket)
	defer c.close()
	return c.remove(ctx, name(run))
}

// Left lists the runs of a node of which there are containers.
func (e *Engine) Left(ctx context.Context, node string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c := dial(e.Socket)
	defer c.close()
	all, err := c.list(ctx, labelNode+"="+node)
	var out []string
	for _, l := range all {
		out = append(out, l.Labels[labelRun])
	}
	return out, err
}

// User is who a program is in its container, so that it can write to the run's
// folders and nobody's else: outside it is the user of the node, or where that is
// root somebody whom the machine does not have.
func (e *Engine) User(uid, gid int) (user string, chown int) {
	switch {
	case e.Rootless:
		return "0:0", -1 // who is the node's user outside
	case uid != 0:
		return fmt.Sprintf("%d:%d", uid, gid), -1
	}
	return fmt.Sprintf("%d:%[1]d", nobodys), nobodys
}

// nobodys is a user and group that no machine has.
const nobodys = 1 << 30

// Launch returns how a container is started.
func (p *Plan) Launch() (launch.Command, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return launch.Command{}, err
	}
	return launch.Command{
		Path: launch.Self, Args: []string{Name, actRun}, Dir: "/", Files: []launch.File{{Data: b}, {Report: true}},
		Env: []string{"BALANCE_RUN=" + p.Run, "BALANCE_NODE=" + p.Node}, // by which the node finds what it has started
	}, nil
}

// After returns the arguments with which this program removes the container.
func (p *Plan) After() []string { return []string{Name, actRemove, p.Socket, p.Run} }

// Name is what this program is started as to stand for a container, or to remove one.
const Name = "balance-container"

// What it is to do then, its first argument.
const (
	actRun    = "run"
	actRemove = "remove"
)

// removeTime bounds the wait for a container to be killed and removed.
const removeTime = 30 * time.Second
