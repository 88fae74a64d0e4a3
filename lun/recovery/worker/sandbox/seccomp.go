package sandbox

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rule lets a system call pass if all of its conditions hold.
type rule struct {
	call uint32
	when condition
}

// condition looks at the low 32 bits of an argument: all that is meaningful of
// those that are asked for here.
type condition struct {
	arg  uint32
	kind kind
	k    []uint32
}

type kind uint8

const (
	always  kind = iota
	oneOf        // the argument is one of k
	without      // it has none of the bits k[0]
	having       // it has one of the bits k[0]
)

// common are the calls of a Go program on Linux that reads and writes
// descriptors, serves sockets it was given, and opens nothing: what the Go
// runtime needs, what packages os and net do with a descriptor, and what the C
// library's threads need in a program that is linked with it.
func common() []rule {
	own := uint32(os.Getpid())
	rules := []rule{
		// Only threads; never a process.
		{unix.SYS_CLONE, condition{0, having, []uint32{unix.CLONE_THREAD}}},
		// No new code.
		{unix.SYS_MMAP, condition{2, without, []uint32{unix.PROT_EXEC}}},
		{unix.SYS_MPROTECT, condition{2, without, []uint32{unix.PROT_EXEC}}},
		// Signals to itself.
		{unix.SYS_TGKILL, condition{0, oneOf, []uint32{own}}},
		{unix.SYS_KILL, condition{0, oneOf, []uint32{own}}},
		// Names of memory areas, of threads.
		{unix.SYS_PRCTL, condition{0, oneOf, []uint32{unix.PR_SET_VMA, unix.PR_SET_NAME}}},
		// Nothing that has a signal sent, or a lease broken.
		{unix.SYS_FCNTL, condition{1, oneOf, []uint32{unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC}}},
	}
	for _, call := range []uint32{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64,
		unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_LSEEK, unix.SYS_FSTAT, unix.SYS_CLOSE, unix.SYS_FSYNC,
		unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FADVISE64,

		unix.SYS_ACCEPT4, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SHUTDOWN,
		unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PIPE2, unix.SYS_PPOLL,

		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_MREMAP, unix.SYS_BRK,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
		unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
		unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETRANDOM,
		unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_MEMBARRIER, unix.SYS_RESTART_SYSCALL,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	} {
		rules = append(rules, rule{call: call})
	}
	return rules
}

// Calls allows this process, with all its threads, the system calls of the list
// above and no others: those fail with EPERM. It is for little-endian machines
// that this package has a list of calls for.
func Calls() error {
	if arch == 0 {
		return fmt.Errorf("seccomp: %w: this architecture has no list of system calls", ErrUnsupported)
	}
	filter := assemble(append(common(), more...))
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno == unix.ENOSYS, errno == unix.EINVAL:
		return fmt.Errorf("seccomp: %w: %w", ErrUnsupported, errno)
	case errno != 0:
		return fmt.Errorf("seccomp: %w", errno)
	case tid != 0:
		return fmt.Errorf("seccomp: thread %d has another filter", tid)
	}
	return nil
}

// Offsets in struct seccomp_data, seccomp(2).
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16 // of 8 bytes each
)

// assemble makes the filter: rule after rule, each of which ends in "allow" or
// goes on to the next.
func assemble(rules []rule) []unix.SockFilter {
	allow := ret(unix.SECCOMP_RET_ALLOW)
	out := []unix.SockFilter{
		load(offsetArch),
		jump(unix.BPF_JEQ, arch, 1, 0),
		ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(offsetCall),
		// The C library takes clone instead, whose arguments can be looked at.
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1),
		ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)),
	}
	for _, r := range rules {
		body := []unix.SockFilter{allow}
		if r.when.kind != always {
			body = r.when.body(allow)
		}
		out = append(out, jump(unix.BPF_JEQ, r.call, 0, uint8(len(body))))
		out = append(out, body...)
	}
	return append(out, ret(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)))
}

// body is what is done with a call that is meant: an answer in any case.
func (c condition) body(allow unix.SockFilter) []unix.SockFilter {
	refuse := ret(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
	out := []unix.SockFilter{load(offsetArgs + 8*c.arg)}
	switch c.kind {
	case oneOf:
		for _, k := range c.k {
			out = append(out, jump(unix.BPF_JEQ, k, 0, 1), allow)
		}
	case without:
		out = append(out, jump(unix.BPF_JSET, c.k[0], 1, 0), allow)
	case having:
		out = append(out, jump(unix.BPF_JSET, c.k[0], 0, 1), allow)
	}
	return append(out, refuse)
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func ret(k uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
}

// jump skips yes instructions if the comparison holds, no if not.
func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
}
