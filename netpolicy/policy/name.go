package policy

import (
	"errors"
	"net/netip"
	"strings"
)

const (
	maxName  = 253 // characters of a name without its final dot
	maxLabel = 63
	wildcard = "*."
)

// Faults of names. They never hold the name itself: it may come from a guest.
var (
	errNameLong    = errors.New("is longer than 253 characters")
	errNameASCII   = errors.New("must be ASCII: write an international name in its xn-- form")
	errNameAddress = errors.New("must be a host name; addresses go into allow_cidrs")
	errNameSingle  = errors.New("must be a host name of at least two labels, or *. and one")
	errNameLabel   = errors.New("must be a host name: labels of 1 to 63 letters, digits and inner dashes; no port")
	errNameNumber  = errors.New("must be a host name, which does not end in a number")
)

// CanonicalName gives the one form in which names are compared, resolved, dialled and shown: lower case, without the
// one final dot that a name may have. An error says why a string is no host name; it does not repeat the string.
//
// Refused is whatever two parsers could read differently: characters beyond letters, digits and inner dashes (NUL,
// spaces and other scripts among them), empty labels, labels and names that are too long, addresses, and names that end
// in a number, which resolvers take for addresses (127.1, 0x7f.1). A single label is refused because search lists give
// it a meaning that is not ours. An xn-- label is the ASCII that it is: it is compared byte by byte, and nothing here
// converts between it and another script, so that it cannot mean one name here and another one elsewhere.
func CanonicalName(s string) (string, error) {
	name := strings.TrimSuffix(s, ".")
	if len(name) > maxName {
		return "", errNameLong
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r > 0x7e }) {
		return "", errNameASCII
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return "", errNameAddress
	}
	labels, last := 0, ""
	for label := range strings.SplitSeq(name, ".") {
		if !goodLabel(label) {
			return "", errNameLabel
		}
		labels, last = labels+1, label
	}
	if labels < 2 {
		return "", errNameSingle
	}
	if isNumber(last) {
		return "", errNameNumber
	}
	return strings.ToLower(name), nil
}

// canonicalPattern is CanonicalName for what a policy lists: a host name, or *. and a host name.
func canonicalPattern(s string) (string, error) {
	host, wild := strings.CutPrefix(s, wildcard)
	name, err := CanonicalName(host)
	if err != nil {
		return "", err
	}
	if wild {
		return wildcard + name, nil
	}
	return name, nil
}

func goodLabel(label string) bool {
	if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for i := range len(label) {
		c := label[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// isNumber tells whether a resolver would read the label as part of an address.
func isNumber(label string) bool {
	lower := strings.ToLower(label)
	if hex, ok := strings.CutPrefix(lower, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(lower, "0123456789") == ""
}
