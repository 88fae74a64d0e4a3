package initiator

import (
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/lun"
)

// session is one connection in full feature phase. Commands are sent by whoever
// has one, or by the writer where somebody is at it already; what comes is read
// by one goroutine at a time, its leader: see lead. It ends with its first error;
// after over is closed nothing touches the buffers of its commands.
type session struct {
	nc     *source
	rd     *pdu.Reader
	par    params
	lun    uint64
	portal string
	group  string
	limits struct{ timeout, nop int64 } // in ticks

	// doubts counts what makes the number perhaps stand for another LUN: unit
	// attentions, and time, for some targets exchange a LUN without a word.
	// cleared is how many of them have been looked into.
	doubts, cleared atomic.Int32

	// epoch is the disk's: it grows with what may have cost the LUN its cache.
	epoch *atomic.Uint64

	expStatSN atomic.Uint32
	maxCmdSN  atomic.Uint32
	waiters   atomic.Int32 // for a task and room in the command window
	waiting   atomic.Int32 // for answers
	heard     atomic.Int64 // tick of the last PDU
	doubted   int64        // tick of the last doubt by time; watch's
	now       atomic.Int64 // ticks since the login

	mu      sync.Mutex
	work    sync.Cond // the writer waits
	room    sync.Cond // callers wait
	idle    sync.Cond // the reader waits, at the end
	turn    sync.Cond // the reader waits for its turn to lead
	queue   []outgoing
	spare   []outgoing
	vec     [][]byte
	writing bool
	led     bool // somebody reads
	awake   bool // who reads will send what is queued before it waits
	due     bool // the reader is to look what there is
	cmdSN   uint32
	tasks   []task
	free    []*task
	started int64 // tick of the last command
	closing bool  // no more commands are sent
	said    bool  // the logout is queued
	pinged  bool
	wait    time.Duration // until the next login, as the target wants it
	err     error

	direct direct     // of whoever has set writing
	h      pdu.Header // the leader's
	handed int        // the leader's: commands that ended since its last wait

	quit chan struct{} // closed with the first error
	over chan struct{} // closed when reader and writer have ended
	wg   sync.WaitGroup
}

// newISID makes an initiator part of a session identifier of the random format
// (RFC 7143 section 11.12.5).
func newISID() [6]byte {
	var id [6]byte
	rand.Read(id[:]) // never fails: crypto/rand aborts the program instead
	id[0] = 0x80
	return id
}

// ticksPer is how finely Options.Timeout and NopInterval are kept.
const ticksPer = 8

// tickMax bounds for how long a target's ping lies unread where nothing else
// happens.
const tickMax = time.Second

func newSession(w *wire, o *Options, epoch *atomic.Uint64) *session {
	s := &session{
		nc: w.nc, rd: w.rd, par: w.par, lun: lunField(o.LUN), portal: w.portal, group: w.group,
		epoch: epoch, cmdSN: w.cmdSN, tasks: make([]task, o.Depth),
		wait: time.Duration(w.par.time2Wait) * time.Second,
		quit: make(chan struct{}), over: make(chan struct{}),
	}
	s.work.L, s.room.L, s.idle.L, s.turn.L = &s.mu, &s.mu, &s.mu, &s.mu
	s.direct.init(w.nc)
	s.expStatSN.Store(w.expStatSN)
	s.maxCmdSN.Store(w.maxCmdSN)
	for i := range s.tasks {
		t := &s.tasks[i]
		t.index, t.completed = uint32(i), make(chan struct{}, 1)
		s.free = append(s.free, t)
	}
	tick := min(min(o.Timeout, o.NopInterval)/ticksPer, tickMax)
	s.limits.timeout, s.limits.nop = int64(o.Timeout/tick), int64(o.NopInterval/tick)
	s.wg.Add(2)
	go s.write()
	go s.watch(tick)
	go s.read()
	return s
}

// do has the LUN perform a command and waits for the end of it. It returns how
// many bytes of c.in came. An error that wraps errSession says that no answer
// came; others are the LUN's word.
func (s *session) do(c *command) (int, error) {
	t, err := s.start(c)
	if err != nil {
		return 0, err
	}
	s.await(t)
	n, err := t.result()
	s.put(t)
	return n, err
}

// start sends a command as soon as there is a task and room in the command
// window. Who calls it awaits the answer.
func (s *session) start(c *command) (*task, error) {
	s.mu.Lock()
	if !s.ready() {
		s.waiters.Add(1)
		s.turn.Signal()
		s.flushNow()
		for !s.ready() {
			s.room.Wait()
		}
		s.waiters.Add(-1)
	}
	if s.err != nil {
		err := s.err
		s.mu.Unlock()
		<-s.over
		return nil, err
	}
	t := s.take(c)
	s.waiting.Add(1)
	s.flush()
	return t, nil
}

// take queues a command in a free task. s.mu is held, and s is ready.
func (s *session) take(c *command) *task {
	t := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	if t.uses++; t.uses > usesMax {
		t.uses = 1
	}
	t.c = *c
	t.got, t.dataSN, t.r2tSN, t.asked = 0, 0, 0, 0
	t.refs, t.answered, t.late, t.nsense, t.err = 0, false, false, 0, nil
	t.since = s.now.Load()
	s.started = t.since
	t.tag.Store(t.uses<<indexBits | t.index)
	s.enqueue(t)
	return t
}

// ready reports whether a command may be sent, or never will.
func (s *session) ready() bool {
	return s.err != nil || !s.closing && len(s.free) > 0 && !pdu.Less(s.maxCmdSN.Load(), s.cmdSN)
}

// put gives a task back.
func (s *session) put(t *task) {
	s.mu.Lock()
	t.c, t.slot = command{}, nil
	s.free = append(s.free, t)
	waiting := s.waiters.Load() > 0
	if s.closing && s.sayGoodbye() {
		s.work.Signal()
	}
	s.mu.Unlock()
	if waiting {
		s.room.Signal()
	}
}

// attend has what is queued sent, and what comes read.
func (s *session) attend() {
	s.mu.Lock()
	if !s.led {
		s.due = true
		s.turn.Signal()
	}
	s.flush()
}

// drain lets the commands under way end, sends no more, and logs out.
func (s *session) drain() {
	s.mu.Lock()
	s.closing = true
	s.started = s.now.Load()
	s.sayGoodbye()
	s.flushNow()
	s.mu.Unlock()
	s.work.Signal()
}

// sayGoodbye queues the logout once no command is under way. s.mu is held.
func (s *session) sayGoodbye() bool {
	if s.said || len(s.free) < len(s.tasks) {
		return false
	}
	s.said, s.due = true, true
	s.turn.Signal() // for the answer
	h := logoutHeader()
	h.SetCmdSN(s.cmdSN)
	s.queue = append(s.queue, outgoing{h: h})
	return true
}

// fail ends the session; the first reason stays.
func (s *session) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = fmt.Errorf("portal %s: %w: %w", s.portal, errSession, err)
		close(s.quit)
	}
	s.mu.Unlock()
	s.nc.Close()
	s.work.Broadcast()
	s.room.Broadcast()
	s.turn.Broadcast()
}

// lost is why the session is over, nil while it is not.
func (s *session) lost() error {
	select {
	case <-s.quit:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.err
	default:
		return nil
	}
}

// close logs out, and waits until nothing of the session is left. A target that
// doesn't answer is not waited for long.
func (s *session) close() {
	s.drain()
	patience := time.NewTimer(goodbye)
	defer patience.Stop()
	select {
	case <-s.over:
	case <-patience.C:
	}
	s.fail(lun.ErrClosed)
	<-s.over
}

// finish is the reader's last act: it waits for the writers, and gives every
// command that is left its error. Nobody leads any more.
func (s *session) finish() {
	s.wg.Wait()
	s.mu.Lock()
	for s.writing {
		s.idle.Wait()
	}
	err := s.err
	var left []*task
	for i := range s.tasks {
		t := &s.tasks[i]
		switch {
		case t.tag.Load() != 0:
			t.tag.Store(0)
			t.err = err
			left = append(left, t)
		case t.answered && t.refs > 0:
			t.refs = 0
			left = append(left, t)
		}
	}
	s.queue = nil
	s.mu.Unlock()
	for _, t := range left {
		s.hand(t)
	}
	close(s.over)
}

var (
	errTimeout = errors.New("no answer in time")
	errLogout  = errors.New("the target asked for a logout")
)

// watch counts ticks and ends a session that doesn't answer.
func (s *session) watch(tick time.Duration) {
	defer s.wg.Done()
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-s.quit:
			return
		case <-t.C:
		}
		if err := s.look(s.now.Add(1)); err != nil {
			s.fail(err)
			return
		}
	}
}

// look is one round of watch. What has its limit at a tick is given one more, so
// that nothing ends early.
func (s *session) look(now int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.tasks {
		if t := &s.tasks[i]; t.tag.Load() != 0 && now-t.since > s.limits.timeout {
			return fmt.Errorf("command 0x%02x: %w", t.c.cdb[0], errTimeout)
		}
	}
	if (s.closing || s.waiters.Load() > 0) && now-s.started > s.limits.timeout {
		return fmt.Errorf("command window is closed: %w", errTimeout)
	}
	if now-s.doubted >= s.limits.nop {
		s.doubted = now
		s.doubts.Add(1)
	}
	silent := now - s.heard.Load()
	if len(s.queue) > 0 {
		s.work.Signal()
	}
	if silent > 0 && !s.led {
		s.due = true
		s.turn.Signal()
	}
	switch {
	case silent <= s.limits.nop:
		s.pinged = false
	case silent > 2*s.limits.nop:
		return fmt.Errorf("ping: %w", errTimeout)
	case !s.pinged:
		s.pinged = true
		var h pdu.Header
		h.Set(pdu.OpNopOut, pdu.FlagFinal)
		h[0] |= immediate
		h.SetITT(pingTag)
		h.SetTTT(pdu.NoTag)
		h.SetCmdSN(s.cmdSN)
		s.queue = append(s.queue, outgoing{h: h})
		s.work.Signal()
	}
	return nil
}
