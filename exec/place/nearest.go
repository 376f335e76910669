package place

import (
	"fmt"
	"slices"

	"github.com/balanceai/balance/exec/task"
)

// Nearest returns the smallest change with which a run would fit that fits
// nowhere: on a machine that only one check stands against, and of those the one
// that is missed by the least. It reports false where a machine fits, or more
// than one thing would have to change everywhere.
func Nearest(r task.Ranking) (task.Change, bool) {
	var best task.Change
	found := false
	for i := range r {
		v := &r[i]
		if v.Fits {
			return task.Change{}, false
		}
		if len(v.Reasons) != 1 {
			continue
		}
		if c := change(v); !found || c.Miss < best.Miss {
			best, found = c, true
		}
	}
	return best, found
}

// Misses of what has no amount: a wait comes before another request, and that
// before another machine or other rules.
const (
	waitMiss  = 0.5
	otherMiss = 1e6
)

// amounts are the rules whose need and have are of one kind, and how people ask
// for less of it.
var amounts = map[string]func(uint64) string{
	"cpu":       func(n uint64) string { return task.CPU(n).String() + " cores" },
	"memory":    func(n uint64) string { return task.Bytes(n).String() + " of memory" },
	"disk":      func(n uint64) string { return task.Bytes(n).String() + " of disk" },
	"vram":      func(n uint64) string { return task.Bytes(n).String() + " of VRAM" },
	"gpus":      func(n uint64) string { return gpuCount(int(n)) },
	"gpu-share": func(n uint64) string { return percent(int(n)) + " of a GPU" },
}

func change(v *task.Verdict) task.Change {
	r := v.Reasons[0]
	c := task.Change{Node: v.Node, Name: v.Name, Rule: r.Rule, Miss: otherMiss}
	write := amounts[r.Rule]
	switch {
	case write != nil && r.Have > 0 && r.Need > r.Have:
		c.Miss = float64(r.Need)/float64(r.Have) - 1
		c.Text = fmt.Sprintf("with %s instead of %s it would fit on %s", write(r.Have), write(r.Need), v.Name)
		if r.Ever {
			c.Text += " now; as asked, it fits there at another time"
		}
	case r.Ever:
		c.Miss = waitMiss
		c.Text = fmt.Sprintf("it would fit on %s at another time: %s", v.Name, r.Text)
	case slices.Contains([]string{"node", "labels", "arch", "os", "engines", "gpu-model"}, r.Rule):
		c.Text = fmt.Sprintf("without the condition on %s it would fit on %s", conditions[r.Rule], v.Name)
	default:
		c.Text = fmt.Sprintf("it would fit on %s, but that it %s", v.Name, r.Text)
	}
	return c
}

var conditions = map[string]string{
	"node": "the machine", "labels": "labels", "arch": "the processor", "os": "the system", "engines": "engines", "gpu-model": "the model of the GPU",
}
