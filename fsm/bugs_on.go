//go:build bugs

package fsm

// bug is the deliberate bug that is at work.
var bug string

// SetBug puts a deliberate bug to work, before anything else happens. Deliberate bugs prove that the tests which look
// for their like would find them; the build tag keeps them out of the program that people run. They are:
//
//	no-dedup     an idempotency key is not looked at
//	no-fence     an outcome is taken from whoever proposes it, whatever has become of the intent
//	early-name   a name is free while its snapshot is being made
//	stale-read   what this node has of the state is read as if it were all there is
//	no-resume    nobody resumes a source but the step that should
//	torn         the source runs on while its memory is copied
//	no-doubt     an outcome that nobody has answered for is taken for refused, and undone
//	no-sweep     a restart does not look for what the log does not account for
//	early-commit a snapshot is ready before its files have their names
func SetBug(name string) { bug = name }

// Bug says whether a deliberate bug is at work.
func Bug(name string) bool { return bug == name }
