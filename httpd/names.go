package httpd

import (
	"crypto/rand"
	"encoding/base32"
	"regexp"
)

// snapshotNameRule is what a snapshot's name must look like, in the words of an error.
const snapshotNameRule = "must be 1 to 64 characters: a letter or digit, then letters, digits, dots, underscores or " +
	"dashes"

var snapshotName = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z`)

func validSnapshotName(name string) bool { return snapshotName.MatchString(name) }

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewID makes an identifier: the prefix, a dash and 128 random bits as 26 characters, valid as a DNS label.
func NewID(prefix string) string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: the runtime aborts instead
	return prefix + "-" + lowerBase32.EncodeToString(b[:])
}

var (
	adjectives = [...]string{
		"amber", "brisk", "calm", "clear", "deep", "early", "fair", "fleet", "fresh", "gentle", "golden", "green",
		"hidden", "ivory", "keen", "late", "lively", "lucid", "mellow", "misty", "noble", "pale", "plain", "quick",
		"quiet", "rapid", "silver", "snowy", "still", "sunny", "swift", "warm",
	}
	nouns = [...]string{
		"badger", "bay", "birch", "brook", "cedar", "cliff", "cloud", "cove", "crane", "dune", "falcon", "fern",
		"field", "finch", "fjord", "glade", "grove", "harbor", "heron", "hill", "lake", "lark", "maple", "meadow",
		"otter", "pine", "pond", "reef", "ridge", "river", "stone", "valley",
	}
)

// NewSnapshotName makes a readable name for a snapshot whose creator gave none, e.g. "quiet-heron-k3fq7". The state
// machine adds a number in the rare case that it is taken.
func NewSnapshotName() string {
	var b [6]byte
	_, _ = rand.Read(b[:])
	return adjectives[int(b[0])%len(adjectives)] + "-" + nouns[int(b[1])%len(nouns)] + "-" +
		lowerBase32.EncodeToString(b[2:])[:5]
}
