package devvmm

import (
	"errors"
	"fmt"
	"net/http"
)

// chain is an error told outermost first, the way the API reports them.
type chain []string

func (c chain) Error() string {
	text := ""
	for i, m := range c {
		if i > 0 {
			text += ": "
		}
		text += m
	}
	return text
}

func because(messages ...string) error { return chain(messages) }

func unsupported(what string) error {
	return because("Failed to validate config", "The development VMM does not support "+what)
}

// Refusals whose words people and programs meet in the real VMM's logs.
var (
	errNotRunning     = because("VM is not running")
	errNotCreated     = notFoundError{because("VM is not created")}
	errMissingConfig  = notFoundError{because("VM config is missing")}
	errAlreadyCreated = because("VM is already created")
)

// notFoundError marks the two refusals that are answered with 404 instead of 500.
type notFoundError struct{ error }

// replyError is a refusal as it goes out: a status and a JSON array of messages.
type replyError struct {
	status   int
	messages []string
}

func (e *replyError) Error() string { return fmt.Sprintf("%d %v", e.status, e.messages) }

var (
	errBadRequest = &replyError{http.StatusBadRequest, []string{"Bad Request"}}
	errNotFound   = &replyError{http.StatusNotFound, []string{"Not Found"}}
)

func errBadJSON(err error) *replyError {
	return &replyError{http.StatusBadRequest, []string{"Failed to deserialize JSON", err.Error()}}
}

// refuse wraps the failure of an operation with what the API says about that operation.
func refuse(operation string, err error) *replyError {
	r := &replyError{status: http.StatusInternalServerError, messages: []string{"Error from API", operation}}
	var missing notFoundError
	if errors.As(err, &missing) {
		r.status, err = http.StatusNotFound, missing.error
	}
	var c chain
	if errors.As(err, &c) && c.Error() == err.Error() {
		r.messages = append(r.messages, c...)
	} else {
		r.messages = append(r.messages, err.Error())
	}
	return r
}
