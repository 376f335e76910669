package meshtest_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/mesh/meshtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTalk(t *testing.T) {
	m := meshtest.New(t, 3)
	start := time.Now()
	for i := range 3 {
		for j := range 3 {
			m.MustTalk(i, j, 10*time.Second)
		}
	}
	t.Log(time.Since(start))
}
