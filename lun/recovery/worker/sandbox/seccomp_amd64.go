package sandbox

import "golang.org/x/sys/unix"

const arch = unix.AUDIT_ARCH_X86_64

// more are calls that newer architectures don't have.
var more = []rule{{call: unix.SYS_EPOLL_WAIT}, {call: unix.SYS_POLL}}
