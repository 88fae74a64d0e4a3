package nbd

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/cleave-san/cleave/lun"
)

// Errno is an error number of the wire ("Error values"). They are the numbers
// of Linux whatever the peer runs on.
type Errno uint32

const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

var errnoNames = map[Errno]string{
	EPERM: "not permitted", EIO: "I/O error", ENOMEM: "out of memory", EINVAL: "invalid request",
	ENOSPC: "no space left", EOVERFLOW: "reply too large", ENOTSUP: "not supported",
	ESHUTDOWN: "server is shutting down",
}

func (e Errno) Error() string {
	if n, ok := errnoNames[e]; ok {
		return n
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// Is makes a reply's error one of lun's where it says the same.
func (e Errno) Is(target error) bool {
	switch e {
	case EPERM:
		return target == lun.ErrReadOnly
	case ENOSPC:
		return target == lun.ErrNoSpace
	case ESHUTDOWN:
		return target == lun.ErrClosed
	default:
		return false
	}
}

// errno is what a server answers for a device's error.
func errno(err error) Errno {
	var e Errno
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, lun.ErrReadOnly):
		return EPERM
	case errors.Is(err, lun.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ENOSPC
	case errors.Is(err, lun.ErrOutOfRange):
		return EINVAL
	case errors.Is(err, lun.ErrClosed):
		return ESHUTDOWN
	}
	return EIO
}
