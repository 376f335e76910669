package run

import (
	"fmt"

	"github.com/balanceai/balance/exec/task"
)

// models opens what the run asks models through, if it asks any. closed ends
// that, and returns what was used.
func (x *live) models() (closed func() task.ModelUsage, err error) {
	if len(x.spec.Models) == 0 || x.r.cfg.Models == nil {
		return func() task.ModelUsage { return task.ModelUsage{} }, nil
	}
	x.endpoint, closed, err = x.r.cfg.Models(x.ask())
	if err != nil {
		return nil, fmt.Errorf("open the endpoint for models: %w", err)
	}
	return closed, nil
}
