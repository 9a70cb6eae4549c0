package fsm

import "fmt"

// Kind says what sort of failure an error is. It crosses every boundary of the program: the state machine returns it,
// owners record it in outcomes, and the HTTP layer maps it to a status in one place.
type Kind string

// The kinds, with the HTTP status that httpd gives each.
const (
	KindInvalid      Kind = "invalid"      // 400: the request itself is wrong
	KindUnauthorized Kind = "unauthorized" // 401
	KindNotFound     Kind = "not_found"    // 404: also for what belongs to another organization
	KindConflict     Kind = "conflict"     // 409: name taken, wrong state, other body under the same idempotency key
	KindTooLarge     Kind = "too_large"    // 413
	KindLimit        Kind = "limit"        // 429: a limit of the organization
	KindUnavailable  Kind = "unavailable"  // 503: no capacity, no leader; retrying may help
	KindUnknown      Kind = "unknown"      // 503: the outcome is not known; retry with the same idempotency key
	KindTimeout      Kind = "timeout"      // 504: the deadline passed; the message says what state things are in
	KindNotSupported Kind = "unsupported"  // 501: part of the contract, not built yet
	KindSuperseded   Kind = "superseded"   // never reaches a client: an owner completed an intent it no longer holds
	KindInternal     Kind = "internal"     // 500
)

// Error is a failure with a kind, a message for the client and, inside the process only, a cause for the log.
// Message never holds a secret. Field is the JSON field at fault, where one is.
type Error struct {
	Kind    Kind   `codec:"k"`
	Message string `codec:"m"`
	Field   string `codec:"f,omitempty"`
	cause   error
}

func (e *Error) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %v", e.Message, e.cause)
	}
	return e.Message
}

// Unwrap gives the cause, which exists only in the process where the error was made.
func (e *Error) Unwrap() error { return e.cause }

// Errorf makes an error of a kind. The message is for clients: no secrets, no paths of the host.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an error of a kind around a cause that only the log sees.
func Wrap(kind Kind, cause error, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...), cause: cause}
}
