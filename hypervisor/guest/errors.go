package guest

import (
	"errors"
	"fmt"
	"net/http"
)

// Code says what kind of failure an Error is. The set is closed: a client maps an unknown code to CodeInternal.
type Code string

// The codes, with the HTTP status that carries each.
const (
	CodeNotFound     Code = "not_found"     // 404: the path, directory or program is not there
	CodeIsDirectory  Code = "is_directory"  // 409: a file was needed
	CodeNotDirectory Code = "not_directory" // 409: a directory was needed, also in the middle of a path
	CodePermission   Code = "permission"    // 403: the guest's kernel refused
	CodeExists       Code = "exists"        // 409: something is there already, or a directory is not empty
	CodeInvalid      Code = "invalid"       // 400: the request makes no sense as it stands
	CodeTimeout      Code = "timeout"       // 504: the agent gave up waiting
	CodeInternal     Code = "internal"      // 500: anything else, such as a full disk
)

var statuses = map[Code]int{
	CodeNotFound: http.StatusNotFound, CodeIsDirectory: http.StatusConflict, CodeNotDirectory: http.StatusConflict,
	CodePermission: http.StatusForbidden, CodeExists: http.StatusConflict, CodeInvalid: http.StatusBadRequest,
	CodeTimeout: http.StatusGatewayTimeout, CodeInternal: http.StatusInternalServerError,
}

// ErrUnreachable is wrapped by every error of a call that brought no answer from the agent.
var ErrUnreachable = errors.New("guest agent cannot be reached")

// Error is a failure as the agent reports it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Errorf makes an Error with a formatted message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string { return e.Message }

// Status is the HTTP status that carries the error.
func (e *Error) Status() int {
	if s, ok := statuses[e.Code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// CodeOf finds the Code in an error's chain. It is empty for nil and for errors that did not come from the agent.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
