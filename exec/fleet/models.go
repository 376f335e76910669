package fleet

import (
	"hash/fnv"
	"slices"
	"strings"

	"github.com/balanceai/balance/exec/task"
)

// Model is a model that an engine of a machine answers for. Nobody reaches the
// engine itself: the machine's gateway asks it.
type Model struct {
	Name    string     `cbor:"1,keyasint" json:"name"` // as the engine has it
	Engine  string     `cbor:"2,keyasint" json:"engine"`
	Context int        `cbor:"3,keyasint,omitempty" json:"context,omitempty"` // tokens; 0 where the engine does not tell
	VRAM    task.Bytes `cbor:"4,keyasint,omitempty" json:"vram,omitempty"`    // when it was last in memory; 0 where the engine does not tell
}

// Limits of what one machine says of its models, which others store.
const (
	MaxModels    = 128
	maxModelName = 200
	maxLoaded    = 8 // of them in gossip, which is small
)

// ValidModel reports whether a name can be a model's: others print it.
func ValidModel(name string) bool {
	return name != "" && len(name) <= maxModelName && !strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' })
}

// ModelKey is a short form of a model's name, for gossip. Two names may share
// one: it says where to ask first, and no more.
func ModelKey(name string) uint16 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	s := h.Sum32()
	return uint16(s ^ s>>16)
}

// SetLoaded says which models are in memory.
func (l *Live) SetLoaded(names []string) {
	l.Loaded = nil
	for _, name := range names[:min(len(names), maxLoaded)] {
		l.Loaded = append(l.Loaded, ModelKey(name))
	}
}

// Has returns what a machine says of a model, and whether it is in memory.
func (n *Node) Has(name string) (m Model, loaded, ok bool) {
	if n.Offer == nil {
		return m, false, false
	}
	all := n.Offer.Models
	for _, m := range all[:min(len(all), MaxModels)] {
		if m.Name == name {
			return m, n.Live != nil && slices.Contains(n.Live.Loaded, ModelKey(name)), true
		}
	}
	return m, false, false
}
