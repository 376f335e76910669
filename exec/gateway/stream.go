package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Bounds on passing an answer on.
const (
	readAhead  = 8 << 10          // of an engine's answer
	maxEvent   = 64 << 10         // of one event: what is longer passes unread
	maxWhole   = 4 << 20          // of an answer in one piece that is held until it is whole
	writeTime  = time.Minute      // for a reader to take what it has asked for
	silentTime = 10 * time.Minute // for an engine to say something: large models load for minutes
)

// stream passes one answer on.
type stream struct {
	w       http.ResponseWriter
	out     *http.ResponseController
	from    *http.Response
	header  func() // sets the headers of the answer
	silent  func() // ends the request, when nothing comes
	event   bool   // it is a stream of events
	strip   bool   // see attempt
	trailer bool   // the tokens are told after the answer, for another gateway
	began   time.Time

	written  bool
	first    time.Duration // from the request to the first bytes
	deadline time.Time
	used     tokens
}

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readAhead) }}

// run passes the answer on until it ends.
func (s *stream) run(ctx context.Context) error {
	quiet := time.AfterFunc(silentTime, s.silent)
	defer quiet.Stop()
	in := readers.Get().(*bufio.Reader)
	in.Reset(&wound{s.from.Body, quiet})
	defer func() { in.Reset(nil); readers.Put(in) }()
	var err error
	if s.event {
		err = s.events(in)
	} else {
		err = s.whole(in)
	}
	if err != nil {
		if cause := context.Cause(s.from.Request.Context()); cause != nil && ctx.Err() == nil {
			err = cause
		}
		return err
	}
	if told := s.from.Trailer.Get(trailerUsed); told != "" {
		s.used = parseTokens(told)
	}
	if s.trailer {
		s.w.Header().Set(trailerUsed, s.used.String())
	}
	return nil
}

// wound is a reader that winds up a timer with each byte.
type wound struct {
	io.Reader
	timer *time.Timer
}

func (w *wound) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if n > 0 {
		w.timer.Reset(silentTime)
	}
	return n, err
}

// whole passes on an answer in one piece. As long as it is not very long, its
// reader sees all of it or nothing.
func (s *stream) whole(in *bufio.Reader) error {
	body, err := io.ReadAll(io.LimitReader(in, maxWhole))
	if err != nil {
		return err
	}
	var told struct {
		Usage tokens `json:"usage"`
	}
	if json.Unmarshal(body, &told) == nil { // what is no JSON has no tokens
		s.used = told.Usage
	}
	if err := s.write(body); err != nil || len(body) < maxWhole {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if err := s.write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// events passes on a stream, event by event.
func (s *stream) events(in *bufio.Reader) error {
	var event []byte
	for {
		line, err := in.ReadSlice('\n')
		event = append(event, line...)
		switch {
		case err == nil || errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			if string(bytes.TrimSpace(event)) == "data: [DONE]" {
				return s.write(append(event, "\n\n"...))
			}
			if len(event) > 0 || !s.written {
				return io.ErrUnexpectedEOF
			}
			return nil
		default:
			return err
		}
		ends := err == nil && len(bytes.TrimRight(line, "\r\n")) == 0 && bytes.HasSuffix(event, []byte("\n"))
		if !ends && len(event) < maxEvent {
			continue
		}
		if ends && s.read(event) {
			event = event[:0]
			continue
		}
		if err := s.write(event); err != nil {
			return err
		}
		if in.Buffered() == 0 {
			if err := s.out.Flush(); err != nil {
				return &readerError{err}
			}
		}
		if event = event[:0]; cap(event) > readAhead {
			event = nil
		}
	}
}

var (
	usageField = []byte(`"usage"`)
	dataField  = []byte("data:")
)

// read looks for tokens in an event, and reports whether the event is not for
// the reader.
func (s *stream) read(event []byte) (drop bool) {
	if !bytes.Contains(event, usageField) {
		return false
	}
	_, data, ok := bytes.Cut(event, dataField)
	if !ok {
		return false
	}
	var told struct {
		Choices  *[]struct{} `json:"choices"`
		Usage    *tokens     `json:"usage"`
		Response *struct {
			Usage *tokens `json:"usage"`
		} `json:"response"`
	}
	if json.Unmarshal(bytes.TrimSpace(data), &told) != nil {
		return false
	}
	switch {
	case told.Usage != nil:
		s.used = *told.Usage
	case told.Response != nil && told.Response.Usage != nil:
		s.used = *told.Response.Usage
	}
	return s.strip && told.Usage != nil && told.Choices != nil && len(*told.Choices) == 0
}

// write passes bytes on, with the headers before the first of them.
func (s *stream) write(b []byte) error {
	now := time.Now()
	if !s.written {
		s.written, s.first = true, now.Sub(s.began)
		s.header()
		if s.trailer {
			s.w.Header().Set("Trailer", trailerUsed)
		}
		s.w.WriteHeader(s.from.StatusCode)
	}
	if s.deadline.Sub(now) < writeTime/2 {
		s.deadline = now.Add(writeTime)
		if err := s.out.SetWriteDeadline(s.deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
	}
	if _, err := s.w.Write(b); err != nil {
		return &readerError{err}
	}
	return nil
}

// readerError says that who asked has not taken the answer.
type readerError struct{ err error }

func (e *readerError) Error() string { return "the answer is not read: " + e.err.Error() }
func (e *readerError) Unwrap() error { return e.err }

// fail ends an answer of which something has been passed on. A stream gets an
// event that says so; anything else is cut off, so that nobody takes it for
// whole.
func (s *stream) fail(f *fault) {
	if !s.event {
		panic(http.ErrAbortHandler)
	}
	event := append([]byte("data: "), f.encode()...)
	if s.write(append(event, "\n\n"...)) == nil {
		_ = s.out.Flush() // who asked has gone
	}
}

// readFault reads an error as the API has it; nil where it is none.
func readFault(b []byte) *fault {
	var told struct {
		Error struct {
			Message string `json:"message"`
			Type    string `json:"type"`
			Param   any    `json:"param"`
			Code    any    `json:"code"` // a number, with some engines
		} `json:"error"`
	}
	if json.Unmarshal(b, &told) != nil || told.Error.Message == "" {
		return nil
	}
	code, _ := told.Error.Code.(string)
	return &fault{Message: told.Error.Message, Type: told.Error.Type, Param: told.Error.Param, Code: code}
}
