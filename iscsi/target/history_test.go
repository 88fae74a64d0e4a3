package target

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/lun"
)

// diary is a History in memory.
type diary struct {
	mu    sync.Mutex
	state map[iscsi.Name][]byte
	saves int
	err   error
	hook  func() // called by each Save, before it is done
}

func (d *diary) Load(t iscsi.Name) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state[t], d.err
}

func (d *diary) Save(t iscsi.Name, b []byte) error {
	if d.hook != nil {
		d.hook()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return d.err
	}
	if d.state == nil {
		d.state = map[iscsi.Name][]byte{}
	}
	d.state[t] = b
	d.saves++
	return nil
}

func (d *diary) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// sees reports whether TEST UNIT READY finds a LUN, whatever else it says.
func (r *raw) sees(lun int) bool {
	r.t.Helper()
	st, _, sense := r.answer(r.command(lun, 0x80, make([]byte, 16), 0, nil))
	return st == 0 || len(sense) > 14 && sense[2+12] != 0x25
}

// What an initiator is shown is in the History before; what can't be put there is
// not shown.
func TestHistoryBeforeSight(t *testing.T) {
	d := &diary{}
	l := newLab(t, Options{History: d})
	l.add(newDisk(1 << 20))
	r := l.login(alice)
	r.ready(0)
	l.must(l.s.SetMask(testTarget, mask.Anyone, mask.Grant{LUN: 0}, mask.Grant{LUN: 1}))
	hidden := false
	d.hook = func() { hidden = !r.sees(1) }
	if _, err := l.s.AddLUN(testTarget, 1, LUN{Device: newDisk(1 << 20)}); err != nil {
		t.Fatal(err)
	}
	d.hook = nil
	if !hidden {
		t.Error("the LUN was visible before the History had it")
	}
	if !r.sees(1) {
		t.Error("the LUN is not visible")
	}

	full := errors.New("disk is full")
	d.fail(full)
	if _, err := l.s.AddLUN(testTarget, 2, LUN{Device: newDisk(1 << 20)}); err != nil {
		t.Errorf("a LUN that nobody sees: %v", err)
	}
	if err := l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0}, mask.Grant{LUN: 2}); !errors.Is(err, full) {
		t.Errorf("SetMask: %v", err)
	}
	if r.sees(2) {
		t.Error("visible, and the History doesn't know")
	}
	l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0}, mask.Grant{LUN: 3}))
	if _, err := l.s.AddLUN(testTarget, 3, LUN{Device: newDisk(1 << 20)}); !errors.Is(err, full) {
		t.Errorf("AddLUN: %v", err)
	}
	if _, err := l.s.Stats(testTarget, 3); !errors.Is(err, ErrNoLUN) {
		t.Errorf("it is there: %v", err)
	}
	s := l.dial()
	if st, _, _ := s.loginPDU(1, 3, true, names(bob)...); st != uint16(statusTargetError) {
		t.Errorf("login of somebody new: %04x", st)
	}
	s.gone()
	d.fail(nil)
	l.login(bob).ready(0)
}

// Logins of those that are known cost the History nothing.
func TestHistoryIsNotWrittenPerLogin(t *testing.T) {
	d := &diary{}
	l := newLab(t, Options{History: d})
	l.add(newDisk(1 << 20))
	for i := range 20 {
		r := l.login(alice)
		r.ready(0)
		if i%2 == 0 {
			r.logout()
		} else {
			r.nc.Close()
		}
	}
	if d.saves != 1 {
		t.Errorf("%d saves", d.saves)
	}
}

// Over a restart a number is not given to another LUN while an initiator may still
// have a device for the old one.
func TestHistoryOverRestart(t *testing.T) {
	d := &diary{}
	id := lun.NewIdentity()
	serve := func(number int, id lun.Identity, use func(l *lab)) error {
		l := newLab(t, Options{History: d})
		defer l.s.Close()
		l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: uint16(number)}))
		_, err := l.s.AddLUN(testTarget, number, LUN{Device: newDisk(1 << 20), Identity: id})
		if err == nil && use != nil {
			use(l)
		}
		return err
	}
	l0 := func(l *lab) { l.login(alice).ready(5) }
	if err := serve(5, id, l0); err != nil {
		t.Fatal(err)
	}
	other := lun.NewIdentity()
	if err := serve(5, other, nil); !errors.Is(err, ErrNumberRetired) {
		t.Errorf("another LUN under the number: %v", err)
	}
	if err := serve(5, id, nil); err != nil {
		t.Errorf("the same LUN: %v", err)
	}
	// Comes back, and logs out: it might have had a second session.
	if err := serve(5, id, func(l *lab) { l.login(alice).logout() }); err != nil {
		t.Error(err)
	}
	if err := serve(5, other, nil); !errors.Is(err, ErrNumberRetired) {
		t.Errorf("after a logout of one session: %v", err)
	}
	l := newLab(t, Options{History: d})
	if n, err := l.s.AddLUN(testTarget, NextLUN, LUN{Device: newDisk(4096)}); err != nil || n != 0 {
		t.Errorf("next number: %d %v", n, err)
	}
	l.must(l.s.ForgetInitiator(alice))
	if _, err := l.s.AddLUN(testTarget, 5, LUN{Device: newDisk(4096), Identity: other}); err != nil {
		t.Errorf("after the initiator is gone for good: %v", err)
	}
	d.state[testTarget] = []byte("{")
	if err := New(Options{History: d}).AddTarget(testTarget, ""); err == nil {
		t.Error("a damaged history is taken for none")
	}
}

// The history stays small, whoever comes.
func TestHistoryIsBounded(t *testing.T) {
	u, err := openNumbers(&diary{}, testTarget)
	if err != nil {
		t.Fatal(err)
	}
	id := lun.NewIdentity()
	u.assign(1, id)
	for i := range 10_000 {
		who := iscsi.Name(fmt.Sprintf("iqn.2026-01.test:%d", i))
		u.begin(who, port{})
		if !u.may(1, id, who) {
			for k := range u.shown[1].by {
				u.shown[1].by[k] = true // as settle does
			}
		}
		u.end(who, port{}, false)
	}
	if n := len(u.shown[1].by); n > maxViewers+1 {
		t.Errorf("%d initiators by name", n)
	}
	if n := len(u.viewers); n > maxViewers+1 {
		t.Errorf("%d viewers", n)
	}
	u.retire(1)
	if u.free(1, lun.NewIdentity()) {
		t.Error("free at once")
	}
	u.shown[1].removed = time.Now().Add(-retireFor - time.Hour)
	if !u.free(1, lun.NewIdentity()) {
		t.Error("not free after all that time")
	}
	if u.encode(time.Now()); len(u.shown) != 0 {
		t.Error("not forgotten")
	}
}

// A session that lives keeps a number for as long as it lives.
func TestLivingSessionKeepsNumber(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	l.add(newDisk(1 << 20))
	r := l.login(alice)
	r.ready(1)
	l.must(l.s.RemoveLUN(context.Background(), testTarget, 1))
	l.s.mu.Lock()
	l.s.targets[testTarget].numbers.shown[1].removed = time.Now().Add(-10 * retireFor)
	l.s.mu.Unlock()
	if _, err := l.s.AddLUN(testTarget, 1, LUN{Device: newDisk(4096)}); !errors.Is(err, ErrNumberRetired) {
		t.Errorf("%v", err)
	}
}
