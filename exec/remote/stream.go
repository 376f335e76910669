package remote

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// stream writes lines to a peer. Its timer may write too.
type stream struct {
	rc    *http.ResponseController
	every time.Duration // between signs of life
	idle  *time.Timer

	mu    sync.Mutex
	w     http.ResponseWriter
	begun bool // the header is sent
	ended bool
}

// newStream begins a stream that shows a sign of life when it is idle, and calls
// gone when the peer does not take it.
func newStream(w http.ResponseWriter, every time.Duration, gone func()) *stream {
	st := &stream{rc: http.NewResponseController(w), every: every, w: w}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.idle = time.AfterFunc(every, func() {
		if st.write([]byte("\n")) != nil {
			gone()
		}
	})
	return st
}

func (st *stream) event(e *task.Event) error {
	b, err := encodeLine(e)
	if err != nil {
		return err
	}
	return st.write(b)
}

func (st *stream) write(b []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.writeLocked(b)
}

func (st *stream) writeLocked(b []byte) error {
	if st.ended {
		return nil
	}
	if !st.begun {
		st.begun = true
		st.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	_ = st.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := st.w.Write(b); err != nil {
		return fmt.Errorf("%w: %w", task.ErrBroken, err)
	}
	if err := st.rc.Flush(); err != nil {
		return fmt.Errorf("%w: %w", task.ErrBroken, err)
	}
	st.idle.Reset(st.every)
	return nil
}

// end ends the stream, with an answer unless all went well.
func (st *stream) end(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case err == nil:
	case !st.begun:
		fail(st.w, err)
	default:
		_, a := answerTo(err)
		if b, err := encodeLine(struct {
			Answer answer `json:"answer"`
		}{a}); err == nil {
			_ = st.writeLocked(b)
		}
	}
	st.ended = true
	st.idle.Stop()
}

// encodeLine writes v as a line of JSON.
func encodeLine(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	if b.Len() > maxLine {
		return nil, fmt.Errorf("a line of %d bytes, the limit is %d", b.Len(), maxLine)
	}
	return b.Bytes(), nil
}
