package task

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBytes(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Bytes
		text string
	}{
		{"0", 0, "0 B"},
		{"1023", 1023, "1023 B"},
		{"4GiB", 4 * GiB, "4 GiB"},
		{" 4 gib ", 4 * GiB, "4 GiB"},
		{"512M", 512 * MiB, "512 MiB"},
		{"1.5g", 3 * GiB / 2, "1.5 GiB"},
		{"2k", 2 * KiB, "2 KiB"},
		{"1KB", 1000, "1000 B"},
		{"24GB", 24e9, "22.4 GiB"},
		{"3tb", 3e12, "2.7 TiB"},
		{"1tib", TiB, "1 TiB"},
		{"100B", 100, "100 B"},
		{"0.5k", 512, "512 B"},
	} {
		got, err := ParseBytes(tc.in)
		if err != nil || got != tc.want || got.String() != tc.text {
			t.Errorf("%q: %d %q %v, want %d %q", tc.in, got, got, err, tc.want, tc.text)
		}
	}
	for _, s := range []string{"", "G", "-1", "1e9", "1 2", "4 GiB free", "0x10", "NaN", "Inf", "1..5", "5000000000000T", "4ki", "١"} {
		if got, err := ParseBytes(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
}

// What is printed is read as nearly the same: three digits are kept.
func TestBytesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Bytes(rapid.Uint64Range(0, 1<<50).Draw(t, "bytes"))
		got, err := ParseBytes(b.String())
		if err != nil || math.Abs(float64(got)-float64(b)) > 0.06*float64(b) {
			t.Fatalf("%d printed as %s, read as %d: %v", uint64(b), b, uint64(got), err)
		}
	})
}

func TestCPU(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want CPU
		text string
	}{{"2", 2000, "2"}, {"0.5", 500, "0.5"}, {"500m", 500, "0.5"}, {"0", 0, "0"}, {" 1.25 ", 1250, "1.25"}, {"0.0001", 1, "0.001"}, {"64", 64000, "64"}} {
		got, err := ParseCPU(tc.in)
		if err != nil || got != tc.want || got.String() != tc.text {
			t.Errorf("%q: %d %q %v, want %d %q", tc.in, got, got, err, tc.want, tc.text)
		}
	}
	for _, s := range []string{"", "m", "-1", "two", "NaN", "Inf", "-Inf", "1e300", "1 m m"} {
		if got, err := ParseCPU(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		c := CPU(rapid.Uint64Range(0, 1_000_000).Draw(t, "cpu"))
		if got, err := ParseCPU(c.String()); err != nil || got != c {
			t.Fatalf("%d printed as %s, read as %d: %v", uint64(c), c, uint64(got), err)
		}
	})
}

func TestDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "2d": 48 * time.Hour, " 5m ": 5 * time.Minute, "0s": 0} {
		if got, err := ParseDuration(in); err != nil || got != want {
			t.Errorf("%q: %v %v, want %v", in, got, err, want)
		}
	}
	for _, s := range []string{"", "5", "-5m", "d", "1.5d", "-1d", "99999999d", "soon"} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func FuzzUnits(f *testing.F) {
	for _, s := range []string{"4GiB", "0.5", "500m", "2d", "1e9", "NaN", ".", "9999999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := ParseBytes(s); err == nil && b > 1<<62 {
			t.Errorf("%q is %d", s, b)
		}
		if c, err := ParseCPU(s); err == nil && c > 1e12 {
			t.Errorf("%q is %d", s, c)
		}
		if d, err := ParseDuration(s); err == nil && d < 0 {
			t.Errorf("%q is %v", s, d)
		}
	})
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{time.Minute: "1m", time.Hour: "1h", 90 * time.Second: "1m30s", 25 * time.Hour: "25h", time.Hour + time.Second: "1h0m1s", 10 * time.Minute: "10m", 500 * time.Millisecond: "500ms", 30 * time.Second: "30s"} {
		if got := FormatDuration(d); got != want {
			t.Errorf("%d is %s, want %s", d, got, want)
		}
		if back, err := ParseDuration(want); err != nil || back != d {
			t.Errorf("%s is read as %v, %v", want, back, err)
		}
	}
}

func TestParseShare(t *testing.T) {
	for in, want := range map[string]int{"0.25": 250, "25%": 250, " 33.3 %": 333, "0.001": 1, "0.999": 999} {
		if got, err := ParseShare(in); got != want || err != nil {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0", "1", "100%", "-0.5", "NaN", "Inf", "x", "0.0001", "%"} {
		if got, err := ParseShare(in); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
}

func TestPart(t *testing.T) {
	for _, tc := range []struct {
		all  Bytes
		part int
		want Bytes
	}{{0, 500, 0}, {24 * GiB, 500, 12 * GiB}, {1001, 500, 500}, {math.MaxUint64, 999, math.MaxUint64/1000*999 + 614}} {
		if got := tc.all.Part(tc.part); got != tc.want {
			t.Errorf("%d of %d: %d, want %d", tc.part, tc.all, got, tc.want)
		}
	}
}

func TestTokens(t *testing.T) {
	for text, want := range map[string]Tokens{"5000": 5000, "200k": 200_000, "1.5M": 1_500_000, " 2m ": 2_000_000, "123": 123} {
		if got, err := ParseTokens(text); got != want || err != nil {
			t.Errorf("%q: %d, %v", text, got, err)
		}
		if got, err := ParseTokens(want.String()); got != want || err != nil {
			t.Errorf("%v: %d, %v", want, got, err)
		}
	}
	for _, text := range []string{"", "k", "0", "-1", "many", "1e99", "NaN"} {
		if got, err := ParseTokens(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}
