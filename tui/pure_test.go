package tui

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/ansi"
	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                              "plain",
		"a\x1b[31mred\x1b[0m":                "ared",
		"\x1b]0;title\x07x":                  "x",
		"\x1b]52;c;aGk=\x1b\\x":              "x",
		"\x1bP1;2q#payload\x1b\\x":           "x",
		"tab\there":                          "tab here",
		"line\nbreak\r\n":                    "line break  ",
		"\x00\x07\x7f\u009bx":                "x",
		"user\u202egnp.exe":                  "usergnp.exe",
		"\u2066iso\u2069\u200b\u200d":        "iso",
		"日本語":                                "日本語",
		"naïve ü ß ж":                        "naïve ü ß ж",
		"e\u0301":                            "e",
		"👩\u200d💻":                           "👩💻",
		"\U0001F1EB\U0001F1F7":               "\uFFFD\uFFFD",
		"\U0001FAC6":                         "\uFFFD",
		"✅ ok":                               "✅ ok",
		"bad \xff\xfe utf":                   "bad \uFFFD\uFFFD utf",
		"\ue0b0":                             "\uFFFD",
		"━━╸ ● ⣿":                            "━━╸ ● ⣿",
		"\x1b[":                              "",
		"unfinished \x1b]0;and so all of it": "unfinished ",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "a\x1b[31mb", "\x1b]8;;http://x\x07y", "漢字", "\xf0\x9f\x91\xa9", "\u202e", "\x9b1m", "e\u0301\u0302", "\u1100\u1161\u11a8"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		cells := 0
		for _, r := range got {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.M, r) {
				t.Fatalf("clean(%q) = %q has %U", s, got, r)
			}
			cells += ansi.StringWidth(string(r))
		}
		if wide, old := ansi.StringWidth(got), ansi.StringWidthWc(got); wide != cells || old != cells {
			t.Fatalf("clean(%q) = %q is %d or %d cells wide, its characters are %d", s, got, wide, old, cells)
		}
		if again := clean(got); again != got {
			t.Fatalf("clean(clean(%q)) = %q, not %q", s, again, got)
		}
		for _, w := range []int{0, 1, 2, 7} {
			cut, n := fit(got, w, "…")
			if n > w || n != ansi.StringWidth(cut) {
				t.Fatalf("fit(%q, %d) = %q, %d cells", got, w, cut, n)
			}
		}
	})
}

func TestSplitWords(t *testing.T) {
	for in, want := range map[string][]string{
		"":                     nil,
		"  a  b ":              {"a", "b"},
		`sh -c 'echo "1" > f'`: {"sh", "-c", `echo "1" > f`},
		`a"b c"d`:              {"ab cd"},
		`""`:                   {""},
		`a\ b`:                 {"a b"},
		`"a\"b\n"`:             {`a"b\n`},
		`'it'\''s'`:            {"it's"},
		`$HOME *`:              {"$HOME", "*"},
	} {
		if got, err := splitWords(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("splitWords(%s) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{`'a`, `a "b`, `"\"`} {
		if got, err := splitWords(in); err == nil {
			t.Errorf("splitWords(%s) = %q, want an error", in, got)
		}
	}
}

func FuzzQuote(f *testing.F) {
	f.Add("plain", "it's", "")
	f.Add("a b", "\\", "\"$`")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		words := []string{a, b, c}
		for i := range words {
			words[i] = strings.ToValidUTF8(words[i], "?")
		}
		if got, err := splitWords(command(words)); err != nil || !slices.Equal(got, words) {
			t.Fatalf("splitWords(%s) = %q, %v, want %q", command(words), got, err, words)
		}
	})
}

func testMachine(name string) *machine {
	for _, n := range testMesh().Nodes {
		if n.Name == name {
			return newMachine(&n, nil, testNow)
		}
	}
	panic(name)
}

func TestFilter(t *testing.T) {
	for _, c := range []struct{ filter, match, not string }{
		{"h100", "athena", "boreas"},
		{"H100 ada", "athena", "boreas"},
		{"h100 bob", "", "athena"},
		{"!h100", "boreas", "athena"},
		{"name:bor", "boreas", "athena"},
		{"owner:bob gpu:4090", "io", "boreas"},
		{"state:down", "io", "athena"},
		{"state=down", "io", "athena"},
		{"gpu>80", "gemini", "athena"},
		{"!gpu>80", "athena", "gemini"},
		{"gpu>80%", "gemini", "athena"},
		{"gpu>=0", "athena", "fornax"}, // no GPU: no figure, so no match
		{"gpus>1", "draco", "boreas"},
		{"vram>=100G", "draco", "boreas"},
		{"free<20GiB", "boreas", "draco"},
		{"rtt<1", "boreas", "athena"},
		{"runs>0", "athena", "boreas"},
		{"label:fast engine:vllm", "athena", "boreas"},
		{"gpu>", "fornax", ""}, // not finished: holds for all
		{"!", "fornax", ""},
		{"", "fornax", ""},
	} {
		f, err := parseFilter(c.filter, &machine{})
		if err != nil {
			t.Errorf("%q: %v", c.filter, err)
			continue
		}
		if c.match != "" && !f.match(testMachine(c.match)) {
			t.Errorf("%q does not match %s", c.filter, c.match)
		}
		if c.not != "" && f.match(testMachine(c.not)) {
			t.Errorf("%q matches %s", c.filter, c.not)
		}
	}
	for filter, want := range map[string]string{
		"colour:red": `no field "colour": there are name, owner`,
		"speed>3":    `no number "speed": there are gpu, gpus`,
		"gpu>fast":   "gpu>fast: write a number",
		"gpu>nan":    "gpu>nan: write a number",
	} {
		if _, err := parseFilter(filter, &machine{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", filter, err, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"", "gpu>80 !x", "a:b:c", ">=", "!!", "free>=1e400G", "vram=", "name:\x00"} {
		f.Add(s)
	}
	mc := testMachine("athena")
	run := &runRow{Status: &testRuns()[0]}
	entry := &entryRow{Entry: &testLedger()[0]}
	f.Fuzz(func(t *testing.T, s string) {
		for _, row := range []fields{mc, run, entry} {
			if flt, err := parseFilter(s, row); err == nil {
				flt.match(row)
			}
		}
	})
}

// TestColumns places any columns in any room: they are inside it, in order and
// apart, and those of a lower rank are never dropped for those of a higher.
func TestColumns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		columns := make([]column, rapid.IntRange(1, 12).Draw(t, "columns"))
		for i := range columns {
			low := rapid.IntRange(1, 20).Draw(t, "min")
			columns[i] = column{min: low, max: low + rapid.IntRange(-5, 20).Draw(t, "more"), rank: rapid.IntRange(min(i, 1), 15*min(i, 1)).Draw(t, "rank"), tight: rapid.Bool().Draw(t, "tight")}
		}
		w := rapid.IntRange(1, 200).Draw(t, "w")
		placed := placeColumns(columns, w)
		end, highest := -1, -1
		for i, p := range placed {
			if p.x <= end && i > 0 {
				t.Fatalf("column %d starts at %d, the one before ends at %d", i, p.x, end)
			}
			if len(placed) > 1 && p.w < p.min {
				t.Fatalf("column %d has %d cells, needs %d", i, p.w, p.min)
			}
			end = p.x + p.w
			highest = max(highest, p.rank)
		}
		if len(placed) > 1 && end > w {
			t.Fatalf("the columns end at %d of %d", end, w)
		}
		kept := map[*column]bool{}
		for _, p := range placed {
			kept[p.column] = true
		}
		for i := range columns {
			if !kept[&columns[i]] && columns[i].rank < highest {
				t.Fatalf("a column of rank %d was dropped, one of rank %d was kept", columns[i].rank, highest)
			}
		}
	})
}

// TestList moves the selection through rows that come and go: it is always on a
// row, in the window, and on the same row while that exists.
func TestList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l list
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			before := l.chosen
			if rapid.Bool().Draw(t, "set") {
				ids := rapid.SliceOfNDistinct(rapid.StringMatching("[a-f][0-9]"), 0, 20, rapid.ID).Draw(t, "ids")
				heights := make([]int, len(ids))
				for i := range heights {
					heights[i] = rapid.IntRange(1, 4).Draw(t, "height")
				}
				l.set(ids, heights)
				if slices.Contains(ids, before) && l.chosen != before {
					t.Fatalf("%q is selected, was %q", l.chosen, before)
				}
			} else {
				l.move(rapid.IntRange(-25, 25).Draw(t, "n"))
			}
			if len(l.ids) == 0 {
				continue
			}
			h, seen, lines := rapid.IntRange(1, 12).Draw(t, "h"), false, 0
			l.window(h, func(row, sub, y int) {
				if y < 0 || y >= h || sub >= l.height(row) {
					t.Fatalf("row %d line %d at %d of %d", row, sub, y, h)
				}
				seen = seen || (l.ids[row] == l.chosen && sub == 0)
				lines++
			})
			total := 0
			for i := range l.ids {
				total += l.height(i)
			}
			if !seen || lines != min(h, total) {
				t.Fatalf("%d of %d lines in a window of %d; selected in it: %v", lines, total, h, seen)
			}
		}
	})
}

func TestKeepOrder(t *testing.T) {
	got := keepOrder([]string{"c", "gone", "a"}, []string{"new", "a", "b", "c"})
	if want := []string{"c", "a", "new", "b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestSortSettles changes the figures that rows are sorted by while the
// selection is moved: the order stays, and follows when the user has stopped.
func TestSortSettles(t *testing.T) {
	m := still(newFakeNode())
	now := testNow
	m.clock = func() time.Time { return now }
	m.pressAll("s") // by GPU
	if first := m.fleet.rows[0].Name; first != "gemini" {
		t.Fatalf("%s is first", first)
	}
	m.pressAll("down")
	next := testMesh()
	for i := range next.Nodes {
		n := &next.Nodes[i]
		n.History = slices.Clone(n.History)
		if n.Name == "boreas" {
			n.History[len(n.History)-1].GPUs = []fleet.SampleGPU{{Percent: 100}}
		}
	}
	m.Update(picture{1, next})
	if first := m.fleet.rows[0].Name; first != "gemini" {
		t.Errorf("%s is first while the selection is moved", first)
	}
	now = now.Add(settleAfter + time.Second)
	m.Update(second{})
	if first := m.fleet.rows[0].Name; first != "boreas" {
		t.Errorf("%s is first when it has settled", first)
	}
}

func TestBar(t *testing.T) {
	for _, c := range []struct {
		percent float64
		ascii   bool
		want    string
	}{
		{0, false, "──────────"},
		{1, false, "╸─────────"},
		{50, false, "━━━━━─────"},
		{75, false, "━━━━━━━╸──"},
		{100, false, "━━━━━━━━━━"},
		{400, false, "━━━━━━━━━━"},
		{unknown, false, ""},
		{50, true, "#####-----"},
	} {
		filled, rest := bar(c.percent, 10, c.ascii)
		if got := filled + rest; got != c.want {
			t.Errorf("bar(%v) = %q, want %q", c.percent, got, c.want)
		}
	}
}

func TestCharts(t *testing.T) {
	values := []float64{unknown, 0, 1, 25, 50, 75, 100, 100}
	for _, c := range []struct {
		w, h  int
		ascii bool
		want  []string
	}{
		{4, 1, false, []string{"⢀⣀⣴⣿"}},
		{8, 1, true, []string{" ..:=+##"}},
		{3, 1, true, []string{"+##"}},
		{10, 1, true, []string{"   ..:=+##"}},
		{2, 2, true, []string{"##", "##"}},
	} {
		if got := areaChart(values, c.w, c.h, c.ascii); !slices.Equal(got, c.want) {
			t.Errorf("areaChart %d×%d = %q, want %q", c.w, c.h, got, c.want)
		}
	}
	if got := areaChart([]float64{100, 50}, 1, 2, false); !slices.Equal(got, []string{"⡇", "⣿"}) {
		t.Errorf("two rows: %q", got)
	}
	chart := heatChart([]float64{10, 10, 85, 85, 99, 10}, 4, 1, false, true)[0]
	if want := (text{{accent, " ⣀"}, {warm, "⣶"}, {hot, "⣇"}}); !slices.Equal(chart, want) {
		t.Errorf("heatChart: %v, want %v", chart, want)
	}
	if got := stretch([]float64{1, 2}, 4, 8); !slices.Equal(got, []float64{-1, -1, -1, -1, 1, 1, 2, 2}) {
		t.Errorf("stretch: %v", got)
	}
}

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		usedOf(130*task.GiB, 160*task.GiB):       "130/160G",
		usedOf(9*task.GiB+task.GiB/8, 12<<30):    "9.1/12G",
		usedOf(0, 24*task.GiB):                   "0/24G",
		usedOf(0, 0):                             none,
		usedOf(921*task.GiB, 1434*task.GiB):      "0.9/1.4T",
		gigabytes(81559 * task.MiB):              "80G",
		gigabytes(512 * task.MiB):                "512M",
		percent(unknown):                         none,
		percent(0):                               "0%",
		percent(99.6):                            "100%",
		rtt(0):                                   none,
		rtt(1234 * time.Microsecond):             "1.2ms",
		rtt(140 * time.Millisecond):              "140ms",
		rtt(12 * time.Second):                    "12s",
		duration(4 * time.Second):                "4s",
		duration(12*time.Minute + 4*time.Second): "12m04s",
		duration(27 * time.Hour):                 "1d03h",
		age(12 * time.Second):                    "12 s ago",
		age(4 * time.Minute):                     "4 min ago",
		age(50 * time.Hour):                      "2 d ago",
		age(-time.Second):                        "0 s ago",
		shortAge(4 * time.Minute):                "4m",
		flagBytes(24 * task.GiB):                 "24GiB",
		flagBytes(1500):                          "1500",
		exitWords(137):                           "ended by signal 9",
		exitWords(3):                             "exit code 3",
		shortRun("r-7"):                          "r-7",
		cores(500):                               "0.5 cores",
		cores(task.Core):                         "1 core",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for model, want := range map[string]string{
		"NVIDIA H100 80GB HBM3":   "H100 80G",
		"NVIDIA A100-SXM4-80GB":   "A100 80G",
		"NVIDIA GeForce RTX 4090": "RTX 4090 80G",
		"AMD Instinct MI300X":     "MI300X 80G",
		"Apple M3 Max":            "M3 Max 80G",
		"Intel(R) Arc(TM) A770":   "Arc A770 80G",
		"NVIDIA":                  "GPU 80G",
	} {
		if got := deviceName(fleet.Device{Model: model, VRAM: 80 * task.GiB}); got != want {
			t.Errorf("deviceName(%q) = %q, want %q", model, got, want)
		}
	}
}

// TestNothingIsKnown reads a machine of which nothing was measured: every
// figure is unknown, none is zero.
func TestNothingIsKnown(t *testing.T) {
	n := fleet.Node{Offer: &fleet.Offer{Memory: 8 * task.GiB, GPUs: []fleet.Device{{Model: "X", VRAM: task.GiB}}}}
	mc := newMachine(&n, nil, testNow)
	if mc.cpu != unknown || mc.gpu != unknown || mc.runs != -1 || mc.memoryPercent() != unknown || mc.gpus[0].vramPercent() != unknown {
		t.Errorf("%+v", mc.reading)
	}
	if got := mc.memoryUse() + mc.gpus[0].vramUse() + percent(mc.cpu); got != none+none+none {
		t.Errorf("drawn as %q", got)
	}
}

// TestFactsAge follows how fresh a machine's facts count as.
func TestFactsAge(t *testing.T) {
	f := newFakeNode()
	m := still(f)
	now := testNow
	m.clock = func() time.Time { return now }
	words := func(name string) string {
		_, w, _ := m.standing(m.byID[testID(name)])
		return w
	}
	if got := words("athena"); got != "up" {
		t.Fatalf("athena is %q", got)
	}
	now = now.Add(3 * time.Second)
	m.Update(picture{1, f.mesh}) // the mesh is live, but athena's samples have stopped
	now = now.Add(3 * time.Second)
	m.Update(picture{1, f.mesh})
	if got := words("athena"); got != "6s ago" {
		t.Errorf("athena is %q when its samples have stopped", got)
	}
	if got := words("kallisto"); got != "up" { // it never sent any: its gossip counts
		t.Errorf("kallisto is %q", got)
	}
	now = now.Add(3 * time.Minute)
	m.Update(second{})
	if got := words("kallisto"); got != "3m ago" {
		t.Errorf("kallisto is %q", got)
	}
}

func TestDraft(t *testing.T) {
	f := newForm()
	f.setAgents(testAgents())
	f.setNodes([]string{"athena", "boreas"})
	f.fields[fieldCommand].input.set("train.py 'a b'")
	f.fields[fieldGPUs].input.set("2")
	f.fields[fieldVRAM].input.set("24G")
	f.fields[fieldCPU].input.set("1.5")
	f.fields[fieldLabels].input.set("eu, fast")
	f.fields[fieldTime].input.set("90m")
	f.chooseNode("boreas")
	d, ok := f.draft()
	const want = "balance run -d --node boreas --cpu 1.5 --gpu 2 --vram 24GiB --label eu --label fast --time-limit 1h30m -- train.py 'a b'"
	if got := d.line(); !ok || got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	f.at = fieldAgent
	f.chooseLetter("w")
	f.setNodes([]string{"athena"}) // boreas has left
	f.setAgents(append([]Agent{{Name: "another", Path: "a"}}, testAgents()...))
	if d, _ = f.draft(); d.Agent != "examples/word-report" || d.Node != "" {
		t.Errorf("agent %q, node %q", d.Agent, d.Node)
	}
	f.fields[fieldMemory].input.set("lots")
	if _, ok = f.draft(); ok || f.fields[fieldMemory].err == nil {
		t.Error("lots of memory was accepted")
	}
}

// An agent that has to be told something has a field for it.
func TestDraftOfParameters(t *testing.T) {
	f := newForm()
	f.setAgents([]Agent{{Name: "report", Path: "report"}, {Name: "plain", Path: "plain"}})
	f.at = fieldAgent
	f.choose(1)
	if len(f.fields) != int(fieldCount) {
		t.Fatalf("%d fields", len(f.fields))
	}
	f.setParameters("report", []Parameter{{Name: "topic", Needed: true}, {Name: "style", Choices: []string{"short", "long"}, Default: "short"}})
	if len(f.fields) != int(fieldCount)+2 {
		t.Fatalf("%d fields", len(f.fields))
	}
	f.fields[fieldCount].input.set("tides, and ebbs")
	f.setAgents([]Agent{{Name: "report", Path: "report"}, {Name: "plain", Path: "plain"}}) // asked for again
	f.at = fieldCount + 1
	f.choose(2)
	d, ok := f.draft()
	const want = "balance run -d --param style=long --param 'topic=tides, and ebbs' report"
	if got := d.line(); !ok || got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	f.at = fieldAgent
	f.choose(1)
	if d, _ = f.draft(); len(f.fields) != int(fieldCount) || d.Params != nil || d.Agent != "plain" {
		t.Errorf("another agent has %d fields and is told %v", len(f.fields), d.Params)
	}
}

func TestTerms(t *testing.T) {
	nodes := testMesh().Nodes
	got := strings.Join(terms(&nodes[0]), "\n")
	const want = `runs what ada sends
keeps 2 cores and 4 GiB of memory back
bob may use 4 cores, 16 GiB of memory and 1 GPU, for 2h a run, 22:00-07:30, without a sandbox
every member may use 1 core, 2 GiB of memory and no GPU`
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got := terms(&nodes[1]); len(got) != 1 || !strings.HasPrefix(got[0], "offers nothing") {
		t.Errorf("a thin client: %q", got)
	}
}

func TestDrawsUnicode(t *testing.T) {
	for _, c := range []struct {
		env  []string
		want bool
	}{
		{nil, true},
		{[]string{"TERM=linux", "LANG=en_US.UTF-8"}, false},
		{[]string{"TERM=dumb"}, false},
		{[]string{"LANG=en_US.UTF-8"}, true},
		{[]string{"LANG=de_DE.utf8"}, true},
		{[]string{"LANG=en_US.UTF-8", "LC_ALL=C"}, false},
		{[]string{"LC_CTYPE=C.UTF-8", "LANG=C"}, true},
	} {
		if got := drawsUnicode(c.env); got != c.want {
			t.Errorf("drawsUnicode(%q) = %v", c.env, got)
		}
	}
}

// TestThemeDepths holds every theme to the colours that its terminal has.
func TestThemeDepths(t *testing.T) {
	for _, c := range []struct {
		profile colorprofile.Profile
		want    string // in the sequence of a hue
		never   []string
	}{
		{colorprofile.TrueColor, "38;2;", []string{"38;5;"}},
		{colorprofile.ANSI256, "38;5;", []string{"38;2;"}},
		{colorprofile.ANSI, "\x1b[m\x1b[", []string{"38;2;", "38;5;", "48;"}},
		{colorprofile.ASCII, "", []string{"38;", "48;", "\x1b[3", "\x1b[9"}},
	} {
		for _, dark := range []bool{true, false} {
			th := newTheme(c.profile, dark, false)
			if !strings.Contains(th.off[accent], c.want) {
				t.Errorf("profile %v: the hue is %q", c.profile, th.off[accent])
			}
			for st := range styles {
				for _, never := range c.never {
					if strings.Contains(th.off[st]+th.on[st], never) {
						t.Errorf("profile %v: style %d is %q, selected %q", c.profile, st, th.off[st], th.on[st])
					}
				}
				if th.off[st] == th.on[st] && !strings.Contains(th.off[st], "1") {
					t.Errorf("profile %v: the selected row looks like any other in style %d", c.profile, st)
				}
			}
		}
	}
}

// TestHelpIsTrue opens the help where characters are text: it tells of no key
// that would be typed.
func TestHelpIsTrue(t *testing.T) {
	m := still(newFakeNode())
	m.pressAll("3", "f1")
	for _, b := range m.helpFor {
		for _, key := range b.keys {
			if len(key) == 1 {
				t.Errorf("%q (%s) would be typed", key, b.help)
			}
		}
	}
	if len(m.helpFor) == 0 {
		t.Error("no help")
	}
	m.pressAll("esc")
	if m.helpFor != nil || m.at != Dispatch {
		t.Errorf("esc does not close the help alone; now at %d", m.at)
	}
}
