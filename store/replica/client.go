package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Pull asks a node for what this one lacks of a topic, until there is no more.
func (r *Replica) Pull(ctx context.Context, peer identity.ID, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	for {
		sent, fresh, err := r.pass(ctx, peer, topic)
		if err != nil {
			return fmt.Errorf("pull %s from %s: %w", topic, peer.Short(), err)
		}
		// An entry may be admitted by one that came after it: then ask again.
		if fresh == 0 || fresh == sent {
			return nil
		}
	}
}

// pass asks for one page after the other. What was sent and not stored is not
// asked for again.
func (r *Replica) pass(ctx context.Context, peer identity.ID, topic string) (sent, fresh int, err error) {
	list, err := r.Ledger.Heads(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	heads := map[place]wire.Head{}
	for _, h := range list {
		heads[place{h.Author, h.Segment}] = h
	}
	for idle := 0; idle < maxIdle; idle++ {
		page, err := r.ask(ctx, peer, topic, slices.Collect(maps.Values(heads)))
		if err != nil || len(page) == 0 {
			return sent, fresh, err
		}
		n, _, err := r.take(ctx, peer, topic, page)
		if err != nil {
			return sent, fresh, err
		}
		sent, fresh = sent+len(page), fresh+n
		if n > 0 {
			idle = 0
		}
		advance(heads, page)
	}
	return sent, fresh, fmt.Errorf("%d pages in a row of which nothing can be stored: %w", maxIdle, errForm)
}

// place names a chain of a topic.
type place struct {
	author  identity.ID
	segment uint64
}

// advance brings heads to where they would be if a page had been stored.
func advance(heads map[place]wire.Head, page []*wire.Entry) {
	for _, e := range page {
		at := place{e.Author, e.Segment}
		h, ok := heads[at]
		if ok && h.Seq == e.Seq && h.Hash != e.Hash() {
			h.Fork = &e.Seq
		} else {
			h = wire.Head{Author: e.Author, Segment: e.Segment, Seq: e.Seq, Hash: e.Hash(), Fork: h.Fork}
		}
		heads[at] = h
	}
}

// ask gets the first page of what a node with these heads lacks.
func (r *Replica) ask(ctx context.Context, peer identity.ID, topic string, heads []wire.Head) (page []*wire.Entry, err error) {
	body, err := json.Marshal(heads)
	if err != nil {
		return nil, err
	}
	err = r.post(ctx, peer, topic+"/since", body, func(answer io.Reader) error {
		page, err = readLines(answer)
		return err
	})
	if errors.Is(err, errForm) {
		r.Alarm(peer, err)
	}
	return page, err
}

// push sends entries, those of one topic at a time.
func (r *Replica) push(ctx context.Context, peer identity.ID, list []*wire.Entry) error {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *wire.Entry) int { return strings.Compare(a.Topic, b.Topic) })
	for len(list) > 0 {
		topic := list[0].Topic
		end := slices.IndexFunc(list, func(e *wire.Entry) bool { return e.Topic != topic })
		if end < 0 {
			end = len(list)
		}
		body, n := appendLines(nil, list[:min(end, r.page)])
		if err := r.post(ctx, peer, topic, body, func(io.Reader) error { return nil }); err != nil {
			return fmt.Errorf("push to %s: %w", peer.Short(), err)
		}
		list = list[n:]
	}
	return nil
}

// errNotThere is the answer of a node that a topic does not concern, or that takes
// this one for no party to it.
var errNotThere = errors.New("answer 404: it does not know the topic, or not this node")

// post is one request to a node.
func (r *Replica) post(ctx context.Context, peer identity.ID, path string, body []byte, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+peer.String()+"/v1/ledger/"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := r.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return errNotThere
	}
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 256))
		return fmt.Errorf("answer %s: %.200q", resp.Status, bytes.TrimSpace(why))
	}
	return read(resp.Body)
}
