package place

import (
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// A run goes where its image is, also right after one of another image, and the
// other machines say what they lack.
func TestImages(t *testing.T) {
	holds := func(names ...string) func(*fleet.Node) {
		return func(n *fleet.Node) {
			n.Offer.Drivers = []string{task.DriverProcess, task.DriverImage}
			for _, name := range names {
				n.Offer.Images = append(n.Offer.Images, fleet.Image{ID: "sha256:" + name, Names: []string{name + ":latest"}})
			}
		}
	}
	ix := NewIndex(NewWorkload(nil))
	ix.Update([]fleet.Node{machine(1), machine(2, holds("a", "c")), machine(3, holds("b", "c"))})
	for _, test := range []struct {
		image string
		fits  string
		texts []string
	}{
		{"a", "node-2", []string{"no container runtime", "the image a is not on this machine"}},
		{"b", "node-3", []string{"no container runtime", "the image b is not on this machine"}},
		{"d", "", []string{"no container runtime", "the image d is not on this machine"}},
	} {
		s := spec(task.Needs{})
		s.Driver, s.Image = task.DriverImage, test.image
		list, _ := ix.Choose(s, alice, noon, 0, nil)
		said, fits := "", ""
		for _, v := range list {
			if v.Fits {
				fits += v.Name
			}
			for _, r := range v.Reasons {
				said += r.Text + "\n"
			}
		}
		if fits != test.fits {
			t.Errorf("image %s fits on %q, want %q", test.image, fits, test.fits)
		}
		for _, text := range test.texts {
			if !strings.Contains(said, text) {
				t.Errorf("image %s: %q does not say %q", test.image, said, text)
			}
		}
	}
}
