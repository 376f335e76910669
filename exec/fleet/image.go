package fleet

import (
	"strings"

	"github.com/balanceai/balance/exec/task"
)

// MaxImages is how many images of one machine count.
const MaxImages = 64

// Image is an OCI image that a machine holds.
type Image struct {
	ID    string     `cbor:"1,keyasint" json:"id"`    // its digest, which is the machine's own
	Names []string   `cbor:"2,keyasint" json:"names"` // by tag and by digest
	Size  task.Bytes `cbor:"3,keyasint" json:"size"`
}

// Is reports whether a reference is that of the image.
func (i Image) Is(ref string) bool {
	id := strings.TrimPrefix(i.ID, "sha256:")
	if hex := strings.TrimPrefix(ref, "sha256:"); len(hex) >= shortID && strings.HasPrefix(id, hex) {
		return true
	}
	want := shortest(ref)
	for _, name := range i.Names {
		if shortest(name) == want {
			return true
		}
	}
	return false
}

// shortID is how much of an image's digest is its name at least.
const shortID = 12

// shortest writes a reference so that those that an engine takes for the same are:
// without what it would look for by itself, and with a tag.
func shortest(ref string) string {
	if rest := ref[strings.LastIndex(ref, "/")+1:]; !strings.ContainsAny(rest, ":@") {
		ref += ":latest"
	}
	for _, prefix := range []string{"localhost/", "docker.io/library/", "docker.io/"} {
		if rest, ok := strings.CutPrefix(ref, prefix); ok {
			return rest
		}
	}
	return ref
}
