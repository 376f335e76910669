package fleet

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestOnBattery(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"a desktop":              {nil, false},
		"a laptop at the wall":   {map[string]string{"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery"}, false},
		"a laptop":               {map[string]string{"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery"}, true},
		"fed through USB":        {map[string]string{"ucsi/type": "USB", "ucsi/online": "1", "BAT0/type": "Battery"}, false},
		"a mouse has a battery":  {map[string]string{"hid/type": "Battery", "hid/scope": "Device"}, false},
		"a mouse beside its own": {map[string]string{"hid/type": "Battery", "hid/scope": "Device", "BAT0/type": "Battery"}, true},
	} {
		root := t.TempDir()
		dir := filepath.Join(root, "sys/class/power_supply")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for file, text := range tc.files {
			path := filepath.Join(dir, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		battery, fed, err := power(root)
		if got := battery && !fed; got != tc.want || err != nil {
			t.Errorf("%s: %v, %v, %v", name, battery, fed, err)
		}
	}
	if _, _, err := power(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("nothing to look at: no error")
	}
}

func TestTouched(t *testing.T) {
	root := t.TempDir()
	if _, err := touched(root); err == nil {
		t.Error("no terminals: no error")
	}
	if err := os.MkdirAll(filepath.Join(root, "dev/pts"), 0o700); err != nil {
		t.Fatal(err)
	}
	last := time.Unix(1_800_000_000, 0)
	for name, at := range map[string]time.Time{"dev/tty1": last.Add(-time.Hour), "dev/pts/3": last, "dev/pts/ptmx": last.Add(time.Hour), "dev/tty": last.Add(time.Hour)} {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := touched(root); err != nil || !got.Equal(last) {
		t.Errorf("got %v, %v, want %v", got, err, last)
	}
}

// A device counts as in use by others only where no run holds it.
func TestForeign(t *testing.T) {
	r := reading{gpus: []SampleGPU{{UUID: "a", Percent: 90}, {UUID: "b", Percent: Unknown}}, unified: []bool{false, false}}
	s := newSampler(func(bool) reading { return r }, nil, nil)
	if got := s.foreign(Held{}); got != "a" {
		t.Errorf("a busy device: %q", got)
	}
	if got := s.foreign(Held{Devices: []DeviceUse{{UUID: "a"}}}); got != "" {
		t.Errorf("held by a run: %q", got)
	}
}
