package agent

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"stillframe/hypervisor/guest"
)

var errnoCodes = map[unix.Errno]guest.Code{
	unix.ENOENT: guest.CodeNotFound, unix.ESRCH: guest.CodeNotFound,
	unix.EISDIR: guest.CodeIsDirectory, unix.ENOTDIR: guest.CodeNotDirectory,
	unix.EACCES: guest.CodePermission, unix.EPERM: guest.CodePermission, unix.EROFS: guest.CodePermission,
	unix.EEXIST: guest.CodeExists, unix.ENOTEMPTY: guest.CodeExists,
	unix.EINVAL: guest.CodeInvalid, unix.ENAMETOOLONG: guest.CodeInvalid, unix.ELOOP: guest.CodeInvalid,
	unix.ENOEXEC: guest.CodeInvalid, unix.E2BIG: guest.CodeInvalid, unix.EBUSY: guest.CodeInvalid,
	unix.ETIMEDOUT: guest.CodeTimeout,
}

// asError finds the code that fits an error of the operating system.
func asError(err error) *guest.Error {
	var e *guest.Error
	if errors.As(err, &e) {
		return e
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		if code, ok := errnoCodes[errno]; ok {
			return guest.Errorf(code, "%v", err)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return guest.Errorf(guest.CodeTimeout, "%v", err)
	}
	return guest.Errorf(guest.CodeInternal, "%v", err)
}
