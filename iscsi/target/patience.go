package target

import (
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An initiator with many commands under way sends the next ones some microseconds
// after its answers. Falling asleep in between and being woken takes longer than
// that, and the initiator, who has to wake a sleeper, pays for it as well. So a
// reader whose last waits were short looks for a moment before it sleeps.
//
// It does so only while that costs nobody anything: one reader of a server at a
// time, each look offers the processor to whoever else could use it, and once
// somebody takes it, this reader doesn't look for a while. A few looks in vain, and
// it sleeps at once until its waits are short again.
const (
	lookFor   = 60 * time.Microsecond
	shortWait = 100 * time.Microsecond // asleep: a look that long would often do
	enough    = 4                      // short waits, or looks in vain, in a row
	taken     = 60 * time.Microsecond  // between two looks: somebody had the processor
	rest      = 20 * time.Millisecond  // after that; twice as long each time, up to
	longRest  = 5 * time.Second
)

// patience is a connection's way of waiting for what it reads. Its reader uses it.
type patience struct {
	syscall.RawConn
	looking *atomic.Bool // the server's: somebody looks

	read   func(fd uintptr) bool // of the Read under way
	try    func(fd uintptr) bool // p.attempt, made once
	slept  time.Time             // since when; zero: not in this Read
	short  int                   // short waits in a row
	vain   int                   // looks in vain, in a row
	resume time.Time             // no look before
	rest   time.Duration         // the last one, 0 after a look that found something
}

func newPatience(raw syscall.RawConn, looking *atomic.Bool) *patience {
	p := &patience{RawConn: raw, looking: looking}
	p.try = p.attempt
	return p
}

// Read implements syscall.RawConn.
func (p *patience) Read(read func(fd uintptr) bool) error {
	p.read, p.slept = read, time.Time{}
	err := p.RawConn.Read(p.try)
	p.read = nil
	return err
}

// attempt reports whether the Read is over. The netpoller has been told before of
// what arrives from now on, so nothing is missed between a look and the sleep.
func (p *patience) attempt(fd uintptr) bool {
	if p.read(fd) {
		if !p.slept.IsZero() {
			p.woken()
		}
		return true
	}
	if p.slept.IsZero() && p.short >= enough && p.look(fd) {
		return true
	}
	p.slept = time.Now()
	return false
}

func (p *patience) woken() {
	if time.Since(p.slept) < shortWait {
		p.short++
	} else {
		p.short = 0
	}
}

// look tries to read for a moment.
func (p *patience) look(fd uintptr) bool {
	begun := time.Now()
	if begun.Before(p.resume) || !p.looking.CompareAndSwap(false, true) {
		return false
	}
	defer p.looking.Store(false)
	for last := begun; last.Sub(begun) < lookFor; {
		_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // can't fail
		if p.read(fd) {
			p.vain, p.rest = 0, 0
			return true
		}
		now := time.Now()
		if now.Sub(last) > taken {
			p.rest = min(max(2*p.rest, rest), longRest)
			p.resume = now.Add(p.rest)
			return false
		}
		last = now
	}
	if p.vain++; p.vain >= enough {
		p.vain, p.short = 0, 0
	}
	return false
}
