package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/proxy"
)

// gangProtocol is what a connection between two nodes becomes when it is carried
// from one rank of a gang to another.
const gangProtocol = "balance-rank"

// rank connects another machine of a gang with the rank that is here. Who is not
// of the gang is told what one is told of a run that there is not.
func (p *peerAPI) rank(w http.ResponseWriter, r *http.Request) {
	from, _ := p.caller(r) // membersOnly has asked
	run := r.PathValue("id")
	if r.Header.Get("Upgrade") != gangProtocol || !task.ValidID(run) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	to, err := p.runner.Dial(r.Context(), run, from)
	if errors.Is(err, task.ErrNoRun) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if err != nil {
		p.log.Info("a rank does not listen", "run", run, "from", p.who.name(from), "error", err)
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer to.Close()
	c, _, err := http.NewResponseController(w).Hijack() // the other node waits for the answer before it sends
	if err != nil {
		return
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", gangProtocol); err != nil {
		return
	}
	proxy.Carry(r.Context(), c, to)
}

// joinRank carries a connection to a rank on another machine until both ends
// have closed it.
func joinRank(ctx context.Context, peers *http.Client, node identity.ID, run string, c net.Conn) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+node.String()+"/v1/runs/"+run+"/rank", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", gangProtocol)
	resp, err := peers.Do(req)
	if err != nil {
		return err
	}
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		resp.Body.Close()
		return fmt.Errorf("it answers %s", resp.Status)
	}
	proxy.Carry(ctx, c, stream)
	return nil
}

// gangNodes and gangPort are the flags of a gang.
type (
	gangNodes struct{ to **task.Gang }
	gangPort  struct{ to **task.Gang }
)

func (g gangNodes) Type() string   { return "machines" }
func (g gangNodes) String() string { return "" }
func (g gangNodes) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > task.MaxGang {
		return fmt.Errorf("%q is no number of machines from 1 to %d", s, task.MaxGang)
	}
	drafted(g.to).Nodes = n
	return nil
}

func (g gangPort) Type() string   { return "port" }
func (g gangPort) String() string { return "" }
func (g gangPort) Set(s string) error {
	port, err := parsePort(s)
	if err != nil {
		return err
	}
	drafted(g.to).Port = int(port)
	return nil
}

func drafted(to **task.Gang) *task.Gang {
	if *to == nil {
		*to = &task.Gang{}
	}
	return *to
}

// ranks tells the output of the ranks of a gang apart: each line begins with
// whose it is. A line that is not whole yet waits for its end.
type ranks struct {
	open map[rankStream][]byte
}

type rankStream struct {
	rank   int
	stream string
}

// maxOpen bounds how much of a line waits.
const maxOpen = 64 << 10

// lines returns what can be shown of a rank's output.
func (r *ranks) lines(rank int, stream string, out []byte) []byte {
	if r.open == nil {
		r.open = map[rankStream][]byte{}
	}
	key := rankStream{rank, stream}
	text := slices.Concat(r.open[key], out)
	var b bytes.Buffer
	for len(text) > 0 {
		end := bytes.IndexByte(text, '\n') + 1
		if end == 0 && len(text) < maxOpen {
			break
		}
		if end == 0 {
			end = len(text)
		}
		writeLine(&b, rank, text[:end])
		text = text[end:]
	}
	r.open[key] = text
	return b.Bytes()
}

// rest returns what a rank has left without the end of a line.
func (r *ranks) rest(rank int, stream string) []byte {
	key := rankStream{rank, stream}
	text := r.open[key]
	delete(r.open, key)
	if len(text) == 0 {
		return nil
	}
	var b bytes.Buffer
	writeLine(&b, rank, text)
	return b.Bytes()
}

func writeLine(b *bytes.Buffer, rank int, line []byte) {
	fmt.Fprintf(b, "[rank %d] %s", rank, line)
	if !bytes.HasSuffix(line, []byte("\n")) {
		b.WriteByte('\n')
	}
}

// rankOutput prints what a rank has written.
func (f *follower) rankOutput(e *task.Event) error {
	_, err := f.streamOf(e.Stream).Write(f.ranks.lines(*e.Rank, e.Stream, e.Output()))
	return err
}

// rankEnded prints what is left of a rank's output, says how it ended, and
// remembers what it has brought back.
func (f *follower) rankEnded(e *task.Event) error {
	if f.print.json {
		return f.rankFiles(e)
	}
	for _, stream := range []string{task.Stdout, task.Stderr} {
		if _, err := f.streamOf(stream).Write(f.ranks.rest(*e.Rank, stream)); err != nil {
			return err
		}
	}
	if e.State != task.Succeeded {
		f.chat("rank %d on %s %s %s", *e.Rank, e.Node, e.State, e.Message)
	}
	return f.rankFiles(e)
}

func (f *follower) rankFiles(e *task.Event) error {
	if e.Outputs != "" {
		f.brought = append(f.brought, rankOutputs{*e.Rank, e.Outputs})
	}
	return nil
}

// rankOutputs are the output files of a rank.
type rankOutputs struct {
	rank int
	tree string
}

// writeRanks writes the output files of the ranks, each into a folder of its
// own.
func (f *follower) writeRanks(ctx context.Context, dir string) error {
	for _, o := range f.brought {
		if err := f.writeOutputs(ctx, o.tree, filepath.Join(dir, fmt.Sprintf("rank-%d", o.rank))); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) streamOf(stream string) io.Writer {
	if f.term != nil && f.term.taken.Load() { // which is the run's own
		return f.print.out
	}
	return f.print.ofRun(stream)
}
