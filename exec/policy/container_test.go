package policy

import (
	"testing"

	"github.com/balanceai/balance/exec/task"
)

// Another owner's image runs where the rules say so alone, whatever the machine has.
func TestImagesOfOthers(t *testing.T) {
	for isolation, want := range map[string]struct{ image, program bool }{
		"":                 {false, true},
		IsolationSandbox:   {false, true},
		IsolationContainer: {true, true},
		IsolationNone:      {true, true},
	} {
		terms := Terms{Offers: true, Others: []Grant{{Owner: "ben", CPU: task.Core, Memory: task.GiB, Isolation: isolation}}}
		if err := terms.Check(); err != nil {
			t.Fatal(err)
		}
		for driver, want := range map[string]bool{task.DriverImage: want.image, task.DriverProcess: want.program} {
			q := Question{From: Asker{Owner: "ben"}, Machine: "ana", Driver: driver, Isolation: task.LevelSandbox}
			if got := len(terms.Ask(q)) == 0; got != want {
				t.Errorf("isolation %q, driver %s: %v", isolation, driver, terms.Ask(q))
			}
		}
		q := Question{From: Asker{Owner: "ben"}, Machine: "ana", Driver: task.DriverProcess, Isolation: task.LevelProcess}
		if len(terms.Ask(q)) == 0 && isolation != IsolationNone {
			t.Errorf("isolation %q: a program without a sandbox", isolation)
		}
	}
}
