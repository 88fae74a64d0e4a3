package target

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/scsi"
	"github.com/cleave-san/cleave/lun"
)

// target is one iSCSI target. Server.mu guards it.
type target struct {
	name     iscsi.Name
	alias    string
	luns     map[uint16]*entry
	leaving  map[uint16]*entry // removed, device not yet left
	sessions map[*session]struct{}
	access   map[uint16]scsi.AccessState // by portal group tag; none: active/optimized
	numbers  *numbers
	settling sync.Mutex // before Server.mu
}

// aliasOf is the alias, "" in a discovery session.
func (t *target) aliasOf() string {
	if t == nil {
		return ""
	}
	return t.alias
}

// entry is one LUN: the unit, and who is inside its device.
type entry struct {
	number uint16
	unit   *scsi.Unit
	hidden bool // until the history knows of it; Server.mu guards it

	removed atomic.Bool
	inside  atomic.Int64  // commands between begin and end
	left    chan struct{} // cap 1: inside became 0 after removed

	ghostMu sync.Mutex
	ghosts  ghosts
}

// enter admits a command, unless the LUN has been removed. Each true is
// followed by one leave.
func (e *entry) enter() bool {
	e.inside.Add(1)
	if e.removed.Load() {
		e.leave()
		return false
	}
	return true
}

func (e *entry) leave() {
	if e.inside.Add(-1) == 0 && e.removed.Load() {
		select {
		case e.left <- struct{}{}:
		default:
		}
	}
}

// drain waits until nobody is inside.
func (e *entry) drain(ctx context.Context) error {
	for e.inside.Load() > 0 {
		select {
		case <-e.left:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// AddTarget makes a target without LUNs.
func (s *Server) AddTarget(name iscsi.Name, alias string) error {
	if _, err := iscsi.ParseName(string(name)); err != nil {
		return err
	}
	if len(alias) > 255 {
		return fmt.Errorf("target %s: alias of %d bytes, at most 255", name, len(alias))
	}
	past, err := openNumbers(s.opt.History, name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case s.targets[name] != nil:
		return fmt.Errorf("target %s: %w", name, ErrTargetExists)
	}
	s.targets[name] = &target{name: name, alias: alias, luns: map[uint16]*entry{},
		leaving: map[uint16]*entry{}, sessions: map[*session]struct{}{}, access: map[uint16]scsi.AccessState{}, numbers: past}
	return nil
}

// RemoveTarget withdraws a target's masks, removes its LUNs as RemoveLUN does,
// and drops its sessions. After ErrBusy the target is still there, with the
// LUNs that are busy and seen by nobody; call it again to wait longer.
func (s *Server) RemoveTarget(ctx context.Context, name iscsi.Name) error {
	s.mu.Lock()
	t := s.targets[name]
	if t == nil {
		s.mu.Unlock()
		return fmt.Errorf("target %s: %w", name, ErrNoTarget)
	}
	s.masks.ForgetTarget(name)
	var numbers []int
	for n := range t.luns {
		numbers = append(numbers, int(n))
	}
	for n := range t.leaving {
		numbers = append(numbers, int(n))
	}
	s.mu.Unlock()

	var errs []error
	for _, n := range numbers {
		if err := s.RemoveLUN(ctx, name, n); err != nil && !errors.Is(err, ErrNoLUN) {
			errs = append(errs, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for ss := range t.sessions {
		ss.conn.drop("target was removed")
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if s.targets[name] == t {
		delete(s.targets, name)
	}
	return nil
}

// AddLUN gives a target a LUN under a number (or NextLUN) and returns the
// number. It appears at once, with the unit attention REPORTED LUNS DATA HAS
// CHANGED, in the sessions whose mask has it: set the mask first, or after, but
// nobody sees the LUN without. After an error it is not there.
//
// Persistent reservations that Options.Reservations has for the LUN's identity
// stand from the beginning; scsi.ErrReservations says that they can't be read.
//
// A number under which an initiator has seen another identity is ErrNumberRetired
// until that initiator has logged out of all its sessions, or ForgetInitiator, or
// 30 days, if it has no session then; NextLUN skips such numbers. An initiator is
// shown the LUN when Options.History knows that it is.
func (s *Server) AddLUN(name iscsi.Name, number int, l LUN) (int, error) {
	if number != NextLUN && (number < 0 || number > mask.MaxLUN) {
		return 0, fmt.Errorf("target %s: LUN %d: want 0 to %d", name, number, mask.MaxLUN)
	}
	u, err := scsi.NewUnit(l.Device, scsi.Options{Identity: l.Identity, Writable: l.Writable,
		Vendor: l.Vendor, Product: l.Product, Target: string(name), Store: s.opt.Reservations})
	if err != nil {
		return 0, fmt.Errorf("target %s: new LUN: %w", name, err)
	}
	t, e, err := s.assign(name, number, u)
	if err != nil {
		return 0, err
	}
	err = s.settle(t)
	s.mu.Lock()
	if err != nil {
		if t.luns[e.number] == e { // nobody has seen it
			delete(t.luns, e.number)
			t.numbers.retire(e.number)
		}
		s.mu.Unlock()
		return 0, err
	}
	e.hidden = false
	s.refresh(t)
	s.mu.Unlock()
	if err := s.settle(t); err != nil {
		s.log.Error("iSCSI LUN stays hidden from initiators that have come in between", "target", name, "lun", e.number, "err", err)
	}
	return int(e.number), nil
}

// assign gives a unit a number, still hidden.
func (s *Server) assign(name iscsi.Name, number int, u *scsi.Unit) (*target, *entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.targets[name]
	switch {
	case s.closed:
		return nil, nil, ErrClosed
	case t == nil:
		return nil, nil, fmt.Errorf("target %s: %w", name, ErrNoTarget)
	case number == NextLUN:
		for number = 0; t.free(uint16(number), u.Identity()) != nil; number++ {
			if number == mask.MaxLUN {
				return nil, nil, fmt.Errorf("target %s: %w: all of them", name, ErrNumberTaken)
			}
		}
	default:
		if err := t.free(uint16(number), u.Identity()); err != nil {
			return nil, nil, fmt.Errorf("target %s: LUN %d: %w", name, number, err)
		}
	}
	if err := u.SetPortGroups(s.portGroups(t)); err != nil {
		return nil, nil, fmt.Errorf("target %s: LUN %d: %w", name, number, err)
	}
	e := &entry{number: uint16(number), unit: u, hidden: true, left: make(chan struct{}, 1)}
	t.luns[e.number] = e
	t.numbers.assign(e.number, u.Identity())
	s.refresh(t)
	return t, e, nil
}

// free reports why a number can't be given to a LUN with an identity.
func (t *target) free(n uint16, id lun.Identity) error {
	if t.luns[n] != nil || t.leaving[n] != nil {
		return ErrNumberTaken
	}
	if !t.numbers.free(n, id) {
		return ErrNumberRetired
	}
	return nil
}

// RemoveLUN takes a LUN away: new commands are refused with LOGICAL UNIT NOT
// SUPPORTED at once, running ones may finish until ctx is done, and are then
// answered with the same sense data while the device may still be working on
// them: the error is then ErrBusy. After nil no call is inside the
// device and none will be made. Its grants go with it. Call it again after
// ErrBusy to wait longer.
func (s *Server) RemoveLUN(ctx context.Context, name iscsi.Name, number int) error {
	s.mu.Lock()
	t := s.targets[name]
	if t == nil {
		s.mu.Unlock()
		return fmt.Errorf("target %s: %w", name, ErrNoTarget)
	}
	n := uint16(number)
	e := t.luns[n]
	if e == nil {
		e = t.leaving[n]
	}
	if e == nil || int(n) != number {
		s.mu.Unlock()
		return fmt.Errorf("target %s: LUN %d: %w", name, number, ErrNoLUN)
	}
	if t.luns[n] == e {
		s.masks.Forget(name, n)
		e.removed.Store(true)
		delete(t.luns, n)
		t.leaving[n] = e
		t.numbers.retire(n)
		s.refresh(t)
	}
	s.mu.Unlock()
	if err := s.settle(t); err != nil {
		// It knows of the LUN, which is the safe side.
		s.log.Warn("iSCSI LUN removed", "target", name, "lun", n, "err", err)
	}

	err := e.drain(ctx)
	if err != nil {
		// Cut off: the initiators hear that the LUN is gone. What isn't
		// inside the device leaves now.
		s.mu.Lock()
		for ss := range t.sessions {
			ss.cut(e)
		}
		s.mu.Unlock()
		if e.inside.Load() > 0 {
			return fmt.Errorf("target %s: LUN %d: %d commands: %w (%w)", name, number, e.inside.Load(), ErrBusy, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.leaving[n] == e {
		delete(t.leaving, n)
	}
	return nil
}

// SetWritable allows or forbids writes to a LUN from the next command on; those
// that have begun are not waited for.
func (s *Server) SetWritable(name iscsi.Name, number int, writable bool) error {
	return s.withLUN(name, number, func(e *entry) { e.unit.SetWritable(writable) })
}

// Resized tells initiators that a LUN's device has another size (unit attention
// CAPACITY DATA HAS CHANGED). Until then they see the old one.
func (s *Server) Resized(name iscsi.Name, number int) error {
	return s.withLUN(name, number, func(e *entry) { e.unit.Resized() })
}

// Stats counts what one LUN has done since it was added.
type Stats = scsi.Stats

// Stats returns the counters of one LUN.
func (s *Server) Stats(name iscsi.Name, number int) (Stats, error) {
	var st Stats
	err := s.withLUN(name, number, func(e *entry) { st = e.unit.Stats() })
	return st, err
}

func (s *Server) withLUN(name iscsi.Name, number int, fn func(*entry)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.targets[name]
	if t == nil {
		return fmt.Errorf("target %s: %w", name, ErrNoTarget)
	}
	e := t.luns[uint16(number)]
	if e == nil || int(e.number) != number {
		return fmt.Errorf("target %s: LUN %d: %w", name, number, ErrNoLUN)
	}
	fn(e)
	return nil
}

// SetMask replaces what an initiator (or mask.Anyone) sees of a target; no
// grants: nothing. The target's sessions follow at once. Neither the LUNs
// nor the target need exist yet. After an error of Options.History the mask is
// set, and what it adds is hidden until the next login.
func (s *Server) SetMask(name, initiator iscsi.Name, grants ...mask.Grant) error {
	s.mu.Lock()
	if err := s.masks.Set(name, initiator, grants...); err != nil {
		s.mu.Unlock()
		return err
	}
	t := s.targets[name]
	if t != nil {
		s.refresh(t)
	}
	s.mu.Unlock()
	if t == nil {
		return nil
	}
	return s.settle(t)
}

// SetCredentials says what an initiator (or mask.Anyone without its own) has to
// prove by CHAP from its next login on; nil: nothing. Sessions that exist stay.
func (s *Server) SetCredentials(initiator iscsi.Name, c *mask.Credentials) error {
	return s.masks.SetCredentials(initiator, c)
}

// refresh brings the views of a target's sessions up to date. Server.mu is held.
func (s *Server) refresh(t *target) {
	for ss := range t.sessions {
		ss.see(t, s.masks.View(t.name, ss.info.Initiator))
	}
}
