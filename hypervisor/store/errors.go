package store

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"stillframe/fsm"
)

// ErrUnsupported says that a way cannot be taken on this filesystem or kernel.
var ErrUnsupported = errors.New("not supported here")

// wrap names the operation and the file for the log. A full disk becomes an error of the kind unavailable: nothing is
// wrong with the request, and it may be repeated once there is room.
func wrap(err error, op Op, path string) error {
	if err == nil {
		return nil
	}
	var known *fsm.Error
	if errors.As(err, &known) {
		return err
	}
	err = fmt.Errorf("%s %s: %w", op, path, err)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fsm.Wrap(fsm.KindUnavailable, err, "the node's disk is full")
	}
	return err
}
