//go:build bugs

package hypervisor

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

// TestModelFindsBugsOfTheProgram has the exploration find bugs that are built into the program itself, for "make
// chaos-bugs".
func TestModelFindsBugsOfTheProgram(t *testing.T) {
	for bug, d := range map[string]struct{ scenario, finds string }{
		"no-dedup":   {"two nodes, one name", "under the key"},
		"no-fence":   {"an owner that is given up", "was closed as"},
		"early-name": {"two nodes, one name", "names"},
		"no-doubt":   {"two nodes, one name", "not durable"},
		"no-sweep":   {"an owner that is given up", "left"},
	} {
		t.Run(bug, func(t *testing.T) {
			fsm.SetBug(bug)
			defer fsm.SetBug("")
			for _, s := range scenarios {
				if s.name == d.scenario {
					e := newExplorer(s, "")
					broken := e.run()
					require.Contains(t, broken, d.finds, "%s", e.trail())
					t.Logf("%s: found after %d states: %s", bug, len(e.parents), broken)
					return
				}
			}
			t.Fatalf("no scenario %q", d.scenario)
		})
	}
}
