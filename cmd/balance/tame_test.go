package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestTamed(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext\r\n":                   "plain\ttext\r\n",
		"\x1b[1;31mred\x1b[0m 10 %\r\x1b[K": "\x1b[1;31mred\x1b[0m 10 %\r\x1b[K",
		"é ¡ 漢":                             "é ¡ 漢",
		"\x1b]0;title\x07":                  "·]0;title·",
		"\x1b]52;c;ZXZpbA==\x07":            "·]52;c;ZXZpbA==·", // the clipboard
		"\x1b[6n\x1b[c":                     "·[6n·[c",
		"\x1b[?1049h\x1b[2J\x1b[H":          "·[?1049h·[2J·[H",
		"\x1b[>4;2m":                        "·[>4;2m", // keys of xterm
		"\x1bP$q\"p\x1b\\":                  "·P$q\"p·\\",
		"\u009b6n":                          "·6n",
		"\x1b\x1b[31m":                      "·\x1b[31m",
		"\x1b[" + strings.Repeat("1", 40):   "·[" + strings.Repeat("1", 40),
		"\x00\x07\x7f":                      "···",
		"\x1b[31\x1b[32mgreen":              "·[31\x1b[32mgreen",
		"\x1b(0":                            "·(0",
	} {
		for size := 1; size <= len(in); size++ { // however it comes
			var got bytes.Buffer
			w := &tamed{w: &got}
			for rest := in; rest != ""; {
				n := min(size, len(rest))
				if m, err := w.Write([]byte(rest[:n])); m != n || err != nil {
					t.Fatal(m, err)
				}
				rest = rest[n:]
			}
			if got.String() != want {
				t.Errorf("%q in pieces of %d: %q, want %q", in, size, got.String(), want)
			}
		}
	}
}

// Whatever comes, nothing but colours and the erasure of a line is left of what
// begins with ESC.
func FuzzTamed(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b]0;x\x07\xc2\x9b6n"))
	f.Add([]byte("\x1b[\x1b[m\x1b"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var got bytes.Buffer
		if _, err := (&tamed{w: &got}).Write(in); err != nil {
			t.Fatal(err)
		}
		for rest := got.Bytes(); ; {
			i := bytes.IndexByte(rest, esc)
			if i < 0 {
				break
			}
			rest = rest[i+1:]
			end := bytes.IndexFunc(rest, func(r rune) bool { return r >= 0x40 && r != '[' })
			if len(rest) == 0 || rest[0] != '[' || end < 0 || rest[end] != 'm' && rest[end] != 'K' || !plainParams(rest[1:end]) {
				t.Fatalf("%q became %q", in, got.String())
			}
		}
		if strings.ContainsAny(got.String(), "\u009b\u009d\u0090\x07\x0e") {
			t.Fatalf("%q became %q", in, got.String())
		}
	})
}
