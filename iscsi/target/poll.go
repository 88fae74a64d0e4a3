package target

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An initiator with many commands under way sends the next ones a few microseconds
// after its answers. Falling asleep in between and being woken takes longer than
// that, on both sides: who sends to a sleeper has to wake it. So a reader
// whose last waits were short looks for a moment before it sleeps.
//
// It does so only as long as it costs nobody anything. Each look offers the
// processor to whoever else could use it; when somebody takes it, nobody
// looks for a while. When several waits were longer than a look, the
// reader sleeps at once again.
const (
	pollFor    = 60 * time.Microsecond
	pollShort  = 100 * time.Microsecond
	pollAfter  = 4                     // short waits in a row
	pollGiveUp = 4                     // misses
	pollTaken  = 60 * time.Microsecond // an iteration that long: another had the processor
	pollRest   = 20 * time.Millisecond // after which nobody looks for so long
)

// poller decides whether a reader looks before it sleeps. The reader uses it.
type poller struct {
	short  int // waits that were short, in a row, at most pollAfter
	misses int
	rest   time.Time // no looking before
}

// look reads from fd until something comes, at most for pollFor. It reports
// whether the processor was taken meanwhile.
func look(fd int, p []byte) (n int, taken bool) {
	begun := time.Now()
	last := begun
	for {
		got, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if errno == 0 {
			return int(got), taken
		}
		if errno != unix.EAGAIN {
			return 0, taken
		}
		_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		now := time.Now()
		if now.Sub(last) > pollTaken {
			return 0, true
		}
		if last = now; now.Sub(begun) > pollFor {
			return 0, false
		}
	}
}
