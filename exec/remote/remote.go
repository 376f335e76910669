// Package remote is both ends of the task protocol: a [Client] asks another
// machine to run something, a [Server] answers for this one. Both speak for a
// [Runner], so that a caller cannot tell a remote machine from its own.
//
// The protocol is HTTP between nodes, inside the mesh:
//
//	PUT  /v1/runs/{id}?attempt=n        an order; answers with the stream of its events
//	GET  /v1/runs/{id}/events?after=n   the stream from there on
//	POST /v1/runs/{id}/reserve          a bid: keeps what the run needs until the order comes
//	POST /v1/runs/{id}/stdin?offset=n   standard input as the body; its end is the end of input
//	POST /v1/runs/{id}/size?rows=n&cols=m   the size of its terminal
//	GET  /v1/runs/{id}/files?path=p     a file or folder of its work folder, as a tar archive
//	POST /v1/runs/{id}/cancel?force=1   ends the run; force gives it no time
//	POST /v1/runs/{id}/go               a rank of a gang may start: all are there
//	POST /v1/runs/{id}/renew?attempt=n&seen=m   the submitter is there; see [lease.Holder.Renew]
//	POST /v1/runs/{id}/settle           the submitter's last entries
//	PUT  /v1/custody/{id}               gives a run into custody: an order, and a stream that ends when it is there
//	DELETE /v1/custody/{id}             ends one that was given
//	GET  /v1/blobs/{sha256}             a file by content; Range resumes
//
// A stream is one JSON [task.Event] a line, sent as it happens. An empty line
// each five seconds says that the machine is there; after fifteen seconds of
// nothing the client takes the stream for broken. What is not an event is an
// answer: {"code":…}, as the body of a response that is no stream or, where one
// has begun, as {"answer":{…}} in its last line. Orders and settlements carry
// signed ledger entries: {"entries":["base64",…]}; an order has values of secrets
// beside them, {"secrets":{"NAME":"value"}}, which are only here and in memory.
//
// A bid is {"spec":{…},"wait":true,"waited_ms":0,"claim":false}. The stream that
// answers it has an event "held" once the machine keeps what is asked for, and goes
// on for as long as it does; the caller lets go by closing it.
//
// A caller is who the tunnel says it is. Who is no member, or comes through a
// browser, gets an empty 404 before anything else is looked at; a member learns
// only of the runs that it submitted.
package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// Runner runs orders. It is what the server asks, and what the client is.
type Runner interface {
	// Start runs an order and yields its events until it has finished. An error
	// of yield ends the call, not the run, and is returned as it is.
	Start(ctx context.Context, order task.Order, yield func(*task.Event) error) error
	// Reserve keeps what a run needs, as [run.Runner.Reserve] does.
	Reserve(ctx context.Context, bid task.Bid, yield func(*task.Event) error) error
	// Follow yields the events that come after number after.
	Follow(ctx context.Context, run string, after uint64, yield func(*task.Event) error) error
	// Stdin gives the run its standard input from a byte offset on.
	Stdin(ctx context.Context, run string, offset int64, in io.Reader) error
	// Resize tells the run the size of its terminal.
	Resize(ctx context.Context, run string, size task.Terminal) error
	// Files writes what is at a path of its work folder to w, as a tar archive.
	Files(ctx context.Context, run, path string, w io.Writer) error
	Cancel(ctx context.Context, run string, force bool) error
	// Go lets a rank start, as all of its gang are there.
	Go(ctx context.Context, run string) error
	// Renew tells that who dispatches the run is there, and has seen a stamp.
	Renew(ctx context.Context, run string, attempt int, seen uint64) (next uint64, err error)
	Settle(ctx context.Context, run string, entries []*wire.Entry) error
}

// Custody sees runs through that other nodes have given it.
type Custody interface {
	// Keep takes a run, with its inputs. Again is no mistake. A [*task.Refusal] is
	// its no.
	Keep(ctx context.Context, h task.Handing) error
	// CancelKept asks one to end.
	CancelKept(ctx context.Context, run string) error
}

// CustodyPath is where runs are given into custody.
const CustodyPath = "/v1/custody/"

// Times of the protocol.
const (
	keepAlive      = 5 * time.Second  // between signs of life on a stream
	silence        = 15 * time.Second // after which a stream is broken
	connectTimeout = 5 * time.Second
	writeTimeout   = 30 * time.Second // for the peer to take what it was sent
	lastWords      = time.Second      // for a stream to end after the run has
)

// Limits on what a peer may send.
const (
	maxLine    = 1 << 20 // an event or an answer
	maxEntries = 4 << 20 // the body of an order or a settlement
)

// entriesBody is the body of an order and of a settlement. An order has the
// values of the run's secrets beside what is signed.
type entriesBody struct {
	Entries [][]byte          `json:"entries"`
	Secrets map[string]string `json:"secrets,omitempty"`
}

// bidBody is the body of a bid.
type bidBody struct {
	Spec     task.Spec `json:"spec"`
	Wait     bool      `json:"wait,omitempty"`
	WaitedMS int64     `json:"waited_ms,omitempty"`
	Claim    bool      `json:"claim,omitempty"`
}

func encodeEntries(list []*wire.Entry) [][]byte {
	out := make([][]byte, len(list))
	for i, e := range list {
		out[i] = e.Encode()
	}
	return out
}

func decodeEntries(list [][]byte) ([]*wire.Entry, error) {
	out := make([]*wire.Entry, len(list))
	for i, b := range list {
		var err error
		if out[i], err = wire.ParseEntry(b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Codes of answers.
const (
	codeRefused = "refused" // with reasons
	codeNoRun   = "no-run"
	codeNoBlob  = "no-blob"
	codeOffset  = "offset" // with the offset to send from
	codeLapsed  = "lapsed"
	codeFailed  = "failed" // with an error
)

// stampBody is the answer to a renewal.
type stampBody struct {
	Stamp uint64 `json:"stamp"`
}

// answer is how a request ended that did not end well.
type answer struct {
	Code    string        `json:"code"`
	Error   string        `json:"error,omitempty"`
	Reasons []task.Reason `json:"reasons,omitempty"`
	Entries [][]byte      `json:"entries,omitempty"`
	Offset  int64         `json:"offset,omitempty"`
}

// answerTo tells an error to a peer, with the status for it.
func answerTo(err error) (int, answer) {
	var refusal *task.Refusal
	var offset *task.OffsetError
	switch {
	case errors.As(err, &refusal):
		return http.StatusConflict, answer{Code: codeRefused, Reasons: refusal.Reasons, Entries: encodeEntries(refusal.Entries)}
	case errors.As(err, &offset):
		return http.StatusRequestedRangeNotSatisfiable, answer{Code: codeOffset, Offset: offset.Offset}
	case errors.Is(err, task.ErrNoRun):
		return http.StatusNotFound, answer{Code: codeNoRun}
	case errors.Is(err, lease.ErrLapsed):
		return http.StatusGone, answer{Code: codeLapsed}
	case errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound, answer{Code: codeNoBlob}
	default:
		return http.StatusInternalServerError, answer{Code: codeFailed, Error: err.Error()}
	}
}

// err is the inverse of [answerTo].
func (a *answer) err() error {
	switch a.Code {
	case codeRefused:
		entries, err := decodeEntries(a.Entries)
		if err != nil {
			return fmt.Errorf("its refusal: %w", err)
		}
		return &task.Refusal{Reasons: a.Reasons, Entries: entries}
	case codeOffset:
		return &task.OffsetError{Offset: a.Offset}
	case codeNoRun:
		return task.ErrNoRun
	case codeLapsed:
		return lease.ErrLapsed
	case codeNoBlob:
		return fs.ErrNotExist
	default:
		return fmt.Errorf("it answers %.16q: %.500s", a.Code, a.Error)
	}
}

// line is a line of a stream: an event or the answer that ends it.
type line struct {
	task.Event
	Answer *answer `json:"answer"`
}

// parseLine decodes a line. Unknown fields are left out: a newer program may
// send them.
func parseLine(b []byte) (*task.Event, error) {
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("line of a stream: %w", err)
	}
	switch {
	case l.Answer != nil:
		return nil, l.Answer.err()
	case l.Seq == 0 || l.Type == "":
		return nil, errors.New("line of a stream: neither an event nor an answer")
	}
	return &l.Event, nil
}
