package gateway

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
)

// Spent is how many tokens the engines of a machine have read and written for
// each owner, by the hour. It is safe for concurrent use, and its zero value is
// that of a new machine.
type Spent struct {
	mu    sync.Mutex
	hours map[string]map[int64]task.Tokens // by owner, and hours since 1970
}

const spentStep = time.Hour

func hourOf(t time.Time) int64 { return t.Unix() / int64(spentStep/time.Second) }

func (s *Spent) add(owners []string, n task.Tokens, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hours == nil {
		s.hours = map[string]map[int64]task.Tokens{}
	}
	for _, owner := range owners {
		own := s.hours[owner]
		if own == nil {
			own = map[int64]task.Tokens{}
			s.hours[owner] = own
		}
		own[hourOf(now)] += n
		for hour := range own {
			if hour < hourOf(now.Add(-policy.LongestPer)) {
				delete(own, hour)
			}
		}
	}
}

// within returns what tells an owner's tokens of the last time, of whole hours.
func (s *Spent) within(owner string, now time.Time) func(time.Duration) task.Tokens {
	return func(per time.Duration) (sum task.Tokens) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for hour, n := range s.hours[owner] {
			if hour > hourOf(now.Add(-per)) {
				sum += n
			}
		}
		return sum
	}
}

// MarshalJSON is for a later life to go on with.
func (s *Spent) MarshalJSON() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return json.Marshal(s.hours)
}

// UnmarshalJSON goes on with what an earlier life has written.
func (s *Spent) UnmarshalJSON(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hours = nil
	if err := json.Unmarshal(b, &s.hours); err != nil {
		return fmt.Errorf("tokens that were given: %w", err)
	}
	return nil
}
