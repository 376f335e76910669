package place

import (
	"fmt"
	"math"

	"github.com/balanceai/balance/exec/task"
)

// nearest notes in one verdict the smallest change with which a run would fit
// that fits nowhere: on a machine that only one check stands against, and of
// those the one that is missed by the least. It notes nothing where a machine
// fits, or more than one thing would have to change everywhere.
func nearest(r task.Ranking) {
	best, least := -1, math.Inf(1)
	text := ""
	for i := range r {
		v := &r[i]
		if v.Fits {
			return
		}
		if len(v.Reasons) != 1 {
			continue
		}
		if s, miss := change(v); miss < least {
			best, least, text = i, miss, s
		}
	}
	if best >= 0 {
		r[best].Nearest = text
	}
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

// change says what would have to be different at a machine that one check stands
// against, and by how much it is missed: 1 is as much again.
func change(v *task.Verdict) (text string, miss float64) {
	r := v.Reasons[0]
	write, condition := amounts[r.Rule], conditions[r.Rule]
	switch {
	case write != nil && r.Have > 0 && r.Need > r.Have:
		text = fmt.Sprintf("with %s instead of %s it would fit on %s", write(r.Have), write(r.Need), v.Name)
		if r.Ever {
			text += " now; as asked, it fits there at another time"
		}
		return text, float64(r.Need)/float64(r.Have) - 1
	case r.Ever:
		return fmt.Sprintf("it would fit on %s at another time: %s", v.Name, r.Text), waitMiss
	case condition != "":
		return fmt.Sprintf("without the condition on %s it would fit on %s", condition, v.Name), otherMiss
	default:
		return fmt.Sprintf("it would fit on %s but for one thing: %s", v.Name, r.Text), otherMiss
	}
}

var conditions = map[string]string{
	"node": "the machine", "labels": "labels", "arch": "the processor", "os": "the system", "engines": "engines", "gpu-model": "the model of the GPU",
}
