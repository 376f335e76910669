package fleet

import "testing"

func TestImageIs(t *testing.T) {
	i := Image{ID: "sha256:da40a4d547819b154119", Names: []string{"localhost/box:1", "docker.io/library/busybox:latest", "example.org/tool@sha256:ab"}}
	for _, ref := range []string{"box:1", "localhost/box:1", "busybox", "docker.io/busybox:latest", "example.org/tool@sha256:ab", "sha256:da40a4d547819b154119", "da40a4d54781"} {
		if !i.Is(ref) {
			t.Errorf("%s is not it", ref)
		}
	}
	for _, ref := range []string{"", "box", "box:2", "busybox:1", "example.org/box:1", "example.org/tool", "da40", "sha256:", "sha256:da41a4d54781"} {
		if i.Is(ref) {
			t.Errorf("%s is it", ref)
		}
	}
}
