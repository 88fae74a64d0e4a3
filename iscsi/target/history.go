package target

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/lun"
)

// History keeps, over restarts, which initiators have been shown what under which
// LUN number. A host that was cut off may come back after any time and still
// have a block device for a number; it must not find another LUN there. So what
// a number shows is in the History before an initiator sees it, and stays until
// the initiator has logged out.
//
// Its methods are called for one target at a time.
type History interface {
	// Load returns what the last Save for a target was given; nothing and no
	// error if there was none.
	Load(target iscsi.Name) ([]byte, error)
	// Save replaces what is kept, in one step and durably: after nil a crash
	// can't undo it. After an error either state may be found.
	Save(target iscsi.Name, state []byte) error
}

const (
	// retireFor is how long a number that was taken away is kept from other
	// LUNs for initiators that did not log out and have not come back.
	retireFor = 30 * 24 * time.Hour

	// maxViewers bounds the initiators remembered by name for one number; with
	// more of them it counts as seen by everybody.
	maxViewers = 64

	// maxStale bounds the lost sessions remembered of one initiator.
	maxStale = 64
)

// everybody in the place of an initiator's name stands for more than maxViewers.
const everybody iscsi.Name = "*"

// numbers is the history of one target. Server.mu guards it.
type numbers struct {
	shown   map[uint16]*shown
	viewers map[iscsi.Name]*viewer
	kept    bool // there is a History: marks count when it has them
	dirty   bool // it lacks something
}

// shown is what a number shows or has shown last.
type shown struct {
	identity lun.Identity
	by       map[iscsi.Name]bool // who has seen it; false: not in the History yet
	removed  time.Time           // zero: it is there
}

// viewer is what is known of an initiator's sessions with the target.
type viewer struct {
	living int
	stale  map[port]struct{} // ended without a logout, and not come back
	lost   bool              // there may be others, from before a restart
}

// port tells an initiator's sessions apart.
type port struct {
	isid  [6]byte
	group uint16
}

// historyState is what a History keeps, as JSON.
type historyState struct {
	Version int            `json:"version"`
	Numbers []historyEntry `json:"numbers"`
}

type historyEntry struct {
	LUN        uint16       `json:"lun"`
	Identity   lun.Identity `json:"identity"`
	Initiators []iscsi.Name `json:"initiators"`
	Removed    time.Time    `json:"removed,omitzero"`
}

const historyVersion = 1

// openNumbers takes up what a History has.
func openNumbers(h History, name iscsi.Name) (*numbers, error) {
	u := &numbers{shown: map[uint16]*shown{}, viewers: map[iscsi.Name]*viewer{}, kept: h != nil}
	if h == nil {
		return u, nil
	}
	b, err := h.Load(name)
	var st historyState
	if err == nil && len(b) > 0 {
		if err = json.Unmarshal(b, &st); err == nil && st.Version != historyVersion {
			err = fmt.Errorf("is of version %d, this program knows %d", st.Version, historyVersion)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("history of the LUN numbers of %s: %w", name, err)
	}
	for _, e := range st.Numbers {
		r := &shown{identity: e.Identity, by: map[iscsi.Name]bool{}, removed: e.Removed}
		if r.removed.IsZero() {
			r.removed = time.Now() // until it is there again
		}
		for _, n := range e.Initiators {
			r.by[n] = true
			if n != everybody {
				u.viewers[n] = &viewer{lost: true}
			}
		}
		u.shown[e.LUN] = r
	}
	return u, nil
}

// encode is what a History has to keep. Numbers that nobody can still have a
// device for are forgotten.
func (u *numbers) encode(now time.Time) []byte {
	st := historyState{Version: historyVersion, Numbers: []historyEntry{}}
	for n, r := range u.shown {
		if !r.removed.IsZero() && !u.remembered(r, now) {
			delete(u.shown, n)
			continue
		}
		e := historyEntry{LUN: n, Identity: r.identity, Removed: r.removed}
		for name := range r.by {
			e.Initiators = append(e.Initiators, name)
		}
		slices.Sort(e.Initiators)
		st.Numbers = append(st.Numbers, e)
	}
	slices.SortFunc(st.Numbers, func(a, b historyEntry) int { return int(a.LUN) - int(b.LUN) })
	b, err := json.Marshal(st)
	if err != nil {
		panic(err) // strings, numbers and times: there is nothing that could fail
	}
	return b
}

// may reports whether an initiator may be shown a number now. If only the History
// doesn't know yet, that is noted, and Server.settle makes it so.
func (u *numbers) may(n uint16, id lun.Identity, who iscsi.Name) bool {
	r := u.shown[n]
	if r == nil || r.identity != id {
		return false // it has just been taken away
	}
	if r.by[everybody] || r.by[who] {
		return true
	}
	if len(r.by) >= maxViewers {
		who = everybody
	}
	r.by[who] = !u.kept
	u.dirty = u.dirty || u.kept
	return r.by[who]
}

// assign gives a number that is free to a LUN.
func (u *numbers) assign(n uint16, id lun.Identity) {
	if r := u.shown[n]; r != nil && r.identity == id {
		r.removed = time.Time{}
		return
	}
	u.shown[n] = &shown{identity: id, by: map[iscsi.Name]bool{}}
}

// retire notes that the LUN under a number has gone.
func (u *numbers) retire(n uint16) {
	if r := u.shown[n]; r != nil {
		r.removed = time.Now()
		u.dirty = u.kept
	}
}

// free reports whether a number can show what has an identity.
func (u *numbers) free(n uint16, id lun.Identity) bool {
	r := u.shown[n]
	return r == nil || r.identity == id || !u.remembered(r, time.Now())
}

// remembered reports whether somebody may still have a device for what a number
// has shown.
func (u *numbers) remembered(r *shown, now time.Time) bool {
	old := now.Sub(r.removed) > retireFor
	for who := range r.by {
		v := u.viewers[who]
		switch {
		case who == everybody:
			for _, v := range u.viewers {
				if v.living > 0 {
					return true
				}
			}
			if !old {
				return true
			}
		case v == nil:
		case v.living > 0, !old && (v.lost || len(v.stale) > 0):
			return true
		}
	}
	return false
}

// begin notes a new session.
func (u *numbers) begin(who iscsi.Name, p port) {
	v := u.viewers[who]
	if v == nil {
		v = &viewer{}
		u.viewers[who] = v
	}
	v.living++
	delete(v.stale, p)
}

// end notes that a session is over. After a logout the initiator has no devices of
// it any more.
func (u *numbers) end(who iscsi.Name, p port, logout bool) {
	v := u.viewers[who]
	v.living--
	if !logout {
		if v.stale == nil {
			v.stale = map[port]struct{}{}
		}
		if v.stale[p] = struct{}{}; len(v.stale) > maxStale {
			v.lost, v.stale = true, nil
		}
	}
	if v.living > 0 {
		return
	}
	if clean := len(v.stale) == 0 && !v.lost; clean {
		u.forget(who, false)
		return
	}
	for _, r := range u.shown {
		if _, saw := r.by[who]; saw {
			return
		}
	}
	delete(u.viewers, who) // it has seen nothing, or as one of everybody
}

// forget takes an initiator that has no session out of the history: of what has
// gone, and with all of what is there, too.
func (u *numbers) forget(who iscsi.Name, all bool) {
	for _, r := range u.shown {
		if _, saw := r.by[who]; saw && (all || !r.removed.IsZero()) {
			delete(r.by, who)
			u.dirty = u.dirty || all && u.kept
		}
	}
	delete(u.viewers, who)
}

// settle makes the History know what is to be shown, and shows it. After an error
// what it doesn't know stays hidden. No lock is held.
func (s *Server) settle(t *target) error {
	t.settling.Lock()
	defer t.settling.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for u := t.numbers; u.dirty; {
		u.dirty = false
		state := u.encode(time.Now())
		pending := map[*shown][]iscsi.Name{} // what state has of them
		for _, r := range u.shown {
			for who, durable := range r.by {
				if !durable {
					pending[r] = append(pending[r], who)
				}
			}
		}
		s.mu.Unlock()
		err := s.opt.History.Save(t.name, state)
		s.mu.Lock()
		for r, names := range pending {
			for _, who := range names {
				if err != nil {
					delete(r.by, who)
				} else {
					r.by[who] = true
				}
			}
		}
		if err != nil {
			return fmt.Errorf("history of the LUN numbers of %s: %w", t.name, err)
		}
		s.refresh(t)
	}
	return nil
}

// NumberFree reports whether AddLUN would give a number to a LUN with an identity
// now.
func (s *Server) NumberFree(name iscsi.Name, number int, id lun.Identity) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.targets[name]
	return t != nil && number >= 0 && number <= mask.MaxLUN && t.free(uint16(number), id) == nil
}

// ForgetInitiator says that an initiator is gone for good, or has no devices of
// this server any more: numbers that only it has seen can be used again.
// It changes nothing for an initiator that has a session.
func (s *Server) ForgetInitiator(who iscsi.Name) error {
	s.mu.Lock()
	var changed []*target
	for _, t := range s.targets {
		if v := t.numbers.viewers[who]; v == nil || v.living == 0 {
			t.numbers.forget(who, true)
			changed = append(changed, t)
		}
	}
	s.mu.Unlock()
	for _, t := range changed {
		if err := s.settle(t); err != nil {
			return err
		}
	}
	return nil
}
