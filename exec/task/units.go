package task

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bytes is an amount of memory or data.
type Bytes uint64

// Binary units.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

// String rounds to what a person reads: "512 MiB", "23.6 GiB".
func (b Bytes) String() string {
	for _, u := range []struct {
		size Bytes
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if b < u.size {
			continue
		}
		n := float64(b) / float64(u.size)
		if n >= 99.95 || n == math.Trunc(n) {
			return fmt.Sprintf("%.0f %s", n, u.name)
		}
		return fmt.Sprintf("%.1f %s", n, u.name)
	}
	return fmt.Sprintf("%d B", uint64(b))
}

// Part returns so many thousandths of an amount.
func (b Bytes) Part(thousandths int) Bytes {
	n := Bytes(thousandths)
	return b/1000*n + b%1000*n/1000 // no product that could wrap
}

// ParseBytes reads "4GiB", "4 GB", "512M", "1.5g" or a plain number of bytes.
// K, M, G and T alone are binary, as memory is sold; KB, MB, GB and TB are
// decimal.
func ParseBytes(s string) (Bytes, error) {
	text := strings.TrimSpace(s)
	at := strings.IndexFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if at < 0 {
		at = len(text)
	}
	unit, ok := map[string]float64{
		"": 1, "b": 1,
		"k": 1 << 10, "kib": 1 << 10, "kb": 1e3,
		"m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
		"g": 1 << 30, "gib": 1 << 30, "gb": 1e9,
		"t": 1 << 40, "tib": 1 << 40, "tb": 1e12,
	}[strings.ToLower(strings.TrimSpace(text[at:]))]
	n, err := strconv.ParseFloat(text[:at], 64)
	if !ok || err != nil || n*unit >= 1<<62 {
		return 0, fmt.Errorf("%q is no amount of memory: write it like 512MiB or 24G", s)
	}
	return Bytes(n * unit), nil
}

// CPU is processor time per time, in thousandths of a core.
type CPU uint64

// Core is one core.
const Core CPU = 1000

// String counts cores: "4", "0.5".
func (c CPU) String() string { return strconv.FormatFloat(float64(c)/float64(Core), 'f', -1, 64) }

// ParseCPU reads "2", "0.5" or "500m".
func ParseCPU(s string) (CPU, error) {
	text, milli := strings.CutSuffix(strings.TrimSpace(s), "m")
	n, err := strconv.ParseFloat(text, 64)
	if !milli {
		n *= float64(Core)
	}
	if err != nil || n < 0 || n > 1e9 || math.IsNaN(n) {
		return 0, fmt.Errorf("%q is no number of cores: write it like 2, 0.5 or 500m", s)
	}
	return CPU(math.Ceil(n - 1e-6)), nil // 256.045 cores are 256045.00000000003 thousandths
}

// ParseShare reads a part of a device, "0.25" or "25%", as thousandths.
func ParseShare(s string) (int, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		n /= 100
	}
	if err != nil || !(n >= 0.001 && n < 1) {
		return 0, fmt.Errorf("%.40q is no part of a device: write it like 0.25 or 25%%", s)
	}
	return int(n*1000 + 0.5), nil
}

// ParseDuration reads what [time.ParseDuration] does, and days as "2d". The
// result is never negative.
func ParseDuration(s string) (time.Duration, error) {
	text := strings.TrimSpace(s)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no length of time: write it like 90s, 15m, 2h or 1d", s)
	}
	return d, nil
}

// FormatDuration writes a length of time as people do, which [ParseDuration]
// reads: 2h, not 2h0m0s.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Tokens is a number of tokens, as engines count them.
type Tokens uint64

// String counts thousands and millions: "200k", "1.5M".
func (t Tokens) String() string {
	switch {
	case t >= 1e6 && t%1e5 == 0:
		return strconv.FormatFloat(float64(t)/1e6, 'f', -1, 64) + "M"
	case t >= 1e3 && t%100 == 0:
		return strconv.FormatFloat(float64(t)/1e3, 'f', -1, 64) + "k"
	}
	return strconv.FormatUint(uint64(t), 10)
}

// ParseTokens reads "5000", "200k" or "1.5M".
func ParseTokens(s string) (Tokens, error) {
	text := strings.TrimSpace(s)
	unit := 1.0
	if n := len(text); n > 0 {
		if u, ok := map[byte]float64{'k': 1e3, 'K': 1e3, 'm': 1e6, 'M': 1e6}[text[n-1]]; ok {
			text, unit = text[:n-1], u
		}
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !(n > 0) || n*unit >= 1<<53 {
		return 0, fmt.Errorf("%q is no number of tokens: write it like 5000, 200k or 1.5M", s)
	}
	return Tokens(n * unit), nil
}
