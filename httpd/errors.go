package httpd

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/gofiber/fiber/v2"

	"stillframe/fsm"
)

// statuses maps the kinds of failure to HTTP statuses, here and nowhere else. A kind that is not here is internal.
var statuses = map[fsm.Kind]int{
	fsm.KindInvalid:      http.StatusBadRequest,
	fsm.KindUnauthorized: http.StatusUnauthorized,
	kindForbidden:        http.StatusForbidden,
	fsm.KindNotFound:     http.StatusNotFound,
	kindMethod:           http.StatusMethodNotAllowed,
	kindSlow:             http.StatusRequestTimeout,
	fsm.KindConflict:     http.StatusConflict,
	fsm.KindTooLarge:     http.StatusRequestEntityTooLarge,
	kindHeaders:          http.StatusRequestHeaderFieldsTooLarge,
	fsm.KindLimit:        http.StatusTooManyRequests,
	fsm.KindInternal:     http.StatusInternalServerError,
	fsm.KindNotSupported: http.StatusNotImplemented,
	fsm.KindUnavailable:  http.StatusServiceUnavailable,
	fsm.KindUnknown:      http.StatusServiceUnavailable,
	fsm.KindTimeout:      http.StatusGatewayTimeout,
}

// Kinds that arise from HTTP itself or from a guest's file system, and never reach the log.
const (
	kindForbidden fsm.Kind = "forbidden"          // the guest's kernel refused
	kindMethod    fsm.Kind = "method_not_allowed" // the path has other methods
	kindSlow      fsm.Kind = "request_timeout"    // the request did not arrive in time
	kindHeaders   fsm.Kind = "headers_too_large"
)

// FieldError says what is wrong with one field of a request.
type FieldError struct {
	Field string `json:"field"` // as in the JSON, e.g. network_policy.allow_cidrs[2]
	Error string `json:"error"`
}

// Resource names what a request that could not wait any longer has begun.
type Resource struct {
	ID    string `json:"id"`
	State string `json:"state"`
}

// errorBody is the shape of every answer that is not a success.
type errorBody struct {
	Message  string       `json:"message"`
	Errors   []FieldError `json:"errors,omitempty"`
	Resource *Resource    `json:"resource,omitempty"`
}

// apiError is a failure on its way to the client.
type apiError struct {
	kind     fsm.Kind
	message  string
	fields   []FieldError
	resource *Resource
	after    string // seconds until it is worth trying again, where that is known
	cause    error  // for the log only
}

func (e *apiError) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %v", e.message, e.cause)
	}
	return e.message
}

func (e *apiError) Unwrap() error { return e.cause }

func (e *apiError) status() int {
	if s, ok := statuses[e.kind]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// retryAfter is the value of Retry-After, in seconds; empty where waiting does not help.
func (e *apiError) retryAfter() string {
	switch {
	case e.after != "":
		return e.after
	case e.status() == http.StatusServiceUnavailable:
		return "1"
	case e.status() == http.StatusTooManyRequests:
		return heldLimitAfter
	}
	return ""
}

// heldLimitAfter is the Retry-After, in seconds, of a limit on what an organization has at once: nobody knows when it
// will have less, and a minute loads nobody.
const heldLimitAfter = "60"

func failf(kind fsm.Kind, format string, args ...any) *apiError {
	return &apiError{kind: kind, message: fmt.Sprintf(format, args...)}
}

const invalidRequest = "the request is not valid"

// asAPIError turns any error into one for the client. The message of an *fsm.Error is meant for clients; of what is not
// known nothing is told, and its text goes to the log.
func asAPIError(err error) *apiError {
	var (
		api   *apiError
		state *fsm.Error
		guest *GuestError
		web   *fiber.Error
	)
	switch {
	case errors.As(err, &api):
		return api
	case errors.As(err, &state):
		return fromState(state)
	case errors.As(err, &guest):
		return fromGuest(guest)
	case errors.As(err, &web):
		return fromFiber(web)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &apiError{kind: fsm.KindTimeout, message: "the request did not end in time", cause: err}
	}
	return internal(err)
}

func internal(err error) *apiError {
	return &apiError{kind: fsm.KindInternal, message: "internal error", cause: err}
}

func fromState(e *fsm.Error) *apiError {
	if _, known := statuses[e.Kind]; !known {
		return internal(e)
	}
	out := &apiError{kind: e.Kind, message: e.Message, cause: errors.Unwrap(e)}
	if e.Field != "" {
		out.fields = []FieldError{{e.Field, e.Message}}
	}
	return out
}

var guestKinds = map[GuestCode]fsm.Kind{
	GuestNotFound: fsm.KindNotFound, GuestIsDirectory: fsm.KindConflict, GuestNotDirectory: fsm.KindConflict,
	GuestPermission: kindForbidden, GuestExists: fsm.KindConflict, GuestInvalid: fsm.KindInvalid,
	GuestTimeout: fsm.KindTimeout, GuestInternal: fsm.KindInternal,
}

// fromGuest keeps the agent's words, also of an internal error: they are about the client's own guest.
func fromGuest(e *GuestError) *apiError {
	kind, ok := guestKinds[e.Code]
	if !ok {
		kind = fsm.KindInternal
	}
	return failf(kind, "in the sandbox: %s", e.Message)
}

// fromFiber words what the HTTP server itself has found.
func fromFiber(e *fiber.Error) *apiError {
	switch e.Code {
	case http.StatusNotFound:
		return failf(fsm.KindNotFound, "no such path")
	case http.StatusMethodNotAllowed:
		return failf(kindMethod, "the path does not have this method")
	case http.StatusRequestEntityTooLarge:
		return failf(fsm.KindTooLarge, "the body is too large")
	case http.StatusRequestHeaderFieldsTooLarge:
		return failf(kindHeaders, "the request line and headers are too large")
	case http.StatusRequestTimeout:
		return failf(kindSlow, "the request did not arrive in time")
	case http.StatusBadRequest:
		return &apiError{kind: fsm.KindInvalid, message: "the request is not valid HTTP", cause: e}
	}
	return internal(e)
}
