// Package sandbox takes from a process what it needs not have, by what the
// kernel offers to those without privileges:
//
//   - Files, by Landlock (landlock(7), Linux 5.13): no file is reached by its
//     name any more, and, as far as the kernel knows how, no TCP port, no
//     abstract socket and no process outside; it holds from the next exec on;
//   - Calls, by seccomp (seccomp(2), Linux 3.17): the system calls of a Go
//     program that works on descriptors it has, and no others.
//
// What is open stays usable under both. Neither can be undone, and each is
// worth having without the other. Both want no_new_privs set (prctl(2)).
//
// Errors are ErrUnsupported where the kernel, or this package on this
// architecture, does not have the means: who asks decides whether to go on.
package sandbox

import "errors"

// ErrUnsupported says that the means are not there.
var ErrUnsupported = errors.New("not supported here")
