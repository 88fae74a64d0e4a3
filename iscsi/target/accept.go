package target

import (
	"errors"
	"syscall"
)

// isResource reports whether Accept failed for want of something that comes back.
func isResource(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
