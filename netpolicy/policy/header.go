package policy

import (
	"errors"
	"strings"
)

const (
	maxHeaderName  = 128     // bytes
	maxHeaderValue = 8 << 10 // bytes
)

// Redacted stands in answers of the API where a header's value was.
const Redacted = "[redacted]"

// Faults of headers. None holds a value: values are secrets.
var (
	errHeaderName  = errors.New("is no header name")
	errHeaderOwn   = errors.New("may not be changed: it belongs to the connection or to the framing")
	errHeaderTwice = errors.New("is given twice (header names compare without case)")
	errValueShown  = errors.New("is the placeholder " + Redacted +
		" that answers carry in place of a secret: send the value itself")
	errValueLong    = errors.New("is too long for a header value")
	errValueControl = errors.New("holds a control character, such as a line break")
	errValueSpace   = errors.New("begins or ends with white space, which does not survive in a header")
)

// ownHeader tells whether a header belongs to a connection or to the framing of a message: to change it would change
// where a request ends or whom it is for.
func ownHeader(lower string) bool {
	switch lower {
	case "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
		"transfer-encoding", "upgrade", "http2-settings", "host", "content-length":
		return true
	}
	return false
}

// checkHeaderName notes the name in seen.
func checkHeaderName(name string, seen map[string]bool) error {
	lower := strings.ToLower(name)
	twice := seen[lower]
	seen[lower] = true
	switch {
	case name == "" || len(name) > maxHeaderName || strings.ContainsFunc(name, notToken):
		return errHeaderName
	case ownHeader(lower):
		return errHeaderOwn
	case twice:
		return errHeaderTwice
	}
	return nil
}

func checkHeaderValue(value string) error {
	switch {
	case value == Redacted:
		return errValueShown
	case len(value) > maxHeaderValue:
		return errValueLong
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return errValueControl
	case strings.Trim(value, " \t") != value:
		return errValueSpace
	}
	return nil
}

func notToken(r rune) bool {
	letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}
