package replica

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/balanceai/balance/mesh/wire"
)

// errForm is wrapped by errors about what another node sent, as opposed to
// errors of the connection.
var errForm = errors.New("not what the protocol says")

// line is an entry on its way.
type line struct {
	Entry []byte `json:"entry"` // of wire.Entry.Encode
}

// appendLines appends entries as lines to b, as many as a page of the protocol
// holds, and returns how many those are: one at least.
func appendLines(b []byte, list []*wire.Entry) ([]byte, int) {
	for i, e := range list {
		text, err := json.Marshal(line{e.Encode()})
		if err != nil {
			panic(err) // a byte string
		}
		if i > 0 && len(b)+len(text)+1 > maxPage {
			return b, i
		}
		b = append(append(b, text...), '\n')
	}
	return b, len(list)
}

// readLines reads a page. The entries are well formed; their signatures are not
// checked.
func readLines(in io.Reader) ([]*wire.Entry, error) {
	lines := bufio.NewScanner(io.LimitReader(in, maxPage+1))
	lines.Buffer(nil, maxLine)
	var out []*wire.Entry
	size := 0
	for lines.Scan() {
		if size += len(lines.Bytes()) + 1; size > maxPage {
			return nil, fmt.Errorf("page over %d bytes: %w", maxPage, errForm)
		}
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", len(out)+1, err, errForm)
		}
		e, err := wire.ParseEntry(l.Entry)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", len(out)+1, err, errForm)
		}
		out = append(out, e)
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return nil, fmt.Errorf("line %d over %d bytes: %w", len(out)+1, maxLine, errForm)
	}
	return out, lines.Err()
}
