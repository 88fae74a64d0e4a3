package target

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/pdu"
)

// manage sends a task management function and returns the response.
func (r *raw) manage(fn byte, lun int, ref uint32) byte {
	r.t.Helper()
	var h pdu.Header
	h.Set(pdu.OpTaskMgmt|0x40, pdu.FlagFinal|fn)
	h.SetITT(7000)
	h.SetLUN(uint64(lun) << 48)
	h.SetTTT(ref) // the referenced task tag stands there
	binary.BigEndian.PutUint32(h[24:], r.cmdSN)
	r.must(r.send(&h, nil))
	for {
		a, _, err := r.recv()
		r.must(err)
		if a.Opcode() == pdu.OpTaskMgmtResp && a.ITT() == 7000 {
			return a[2]
		}
	}
}

// nexus finds an initiator's way to a LUN.
func (l *lab) nexus(who iscsi.Name, lun uint16) *nexus {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for ss := range l.s.sessions {
		if ss.info.Initiator == who {
			return (*ss.view.Load())[lun]
		}
	}
	return nil
}

func (n *nexus) waits() (held bool, queued int) {
	n.ss.conn.mu.Lock()
	defer n.ss.conn.mu.Unlock()
	return n.held, n.queue.n
}

// A write that a cut session has left in the device must not land on what its
// initiator writes after it has come back.
func TestGhostsAreWaitedFor(t *testing.T) {
	l := newLab(t, Options{AbortTimeout: 50 * time.Millisecond})
	sick := newHeldDisk(1 << 20)
	l.add(sick)
	old, young := bytes.Repeat([]byte("old."), 128), bytes.Repeat([]byte("new!"), 128)
	r := l.login(alice)
	r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	r.command(0, ioWrite, cdb10(0x2a, 0, 1), 512, old)
	<-sick.in
	r.nc.Close()
	eventually(t, "session has ended", func() bool { return len(l.s.Sessions()) == 0 })

	r = l.login(alice)
	r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	itt := r.command(0, ioWrite, cdb10(0x2a, 0, 1), 512, young)
	r.ping()
	if held, queued := l.nexus(alice, 0).waits(); !held || queued == 0 {
		t.Errorf("held %t, %d commands wait", held, queued)
	}
	other := l.login(bob)
	other.answer(other.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	theirs := other.command(0, ioRead, cdb10(0x28, 8, 1), 512, nil)
	<-sick.in // somebody else is not held up
	if got := other.manage(tmfLUNReset, 0, 0); got != tmfRejected {
		t.Errorf("LUN RESET with a ghost in the device: response %d", got)
	}
	_ = theirs
	close(sick.hold)
	eventually(t, "LUN RESET is complete", func() bool { return other.manage(tmfLUNReset, 0, 0) == tmfComplete })
	// The reset has ended the write that waited, or it came first: write again.
	_ = itt
	again := l.login(alice) // the same port: reinstated
	again.ready(0)
	if st, _, _ := again.answer(again.command(0, ioWrite, cdb10(0x2a, 0, 1), 512, young)); st != 0 {
		t.Fatalf("write: status %d", st)
	}
	if p := sick.content()[:512]; !bytes.Equal(p, young) {
		t.Errorf("the medium has %q", p[:8])
	}
}

// Commands that were held back run when the ghosts are gone.
func TestHeldBackCommandsRun(t *testing.T) {
	l := newLab(t, Options{})
	sick := newHeldDisk(1 << 20)
	l.add(sick)
	r := l.login(alice)
	r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	r.command(0, ioWrite, cdb10(0x2a, 0, 1), 512, make([]byte, 512))
	<-sick.in
	r = l.login(alice) // reinstates
	r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	var itts []uint32
	for i := range 20 {
		itts = append(itts, r.command(0, ioRead, cdb10(0x28, uint32(i), 1), 512, nil))
	}
	r.ping()
	close(sick.hold)
	left := map[uint32]bool{}
	for _, i := range itts {
		left[i] = true
	}
	for len(left) > 0 {
		h, _, err := r.recv()
		r.must(err)
		if h.Opcode() == pdu.OpSCSIResponse || h.Flags()&pdu.FlagStatus != 0 {
			delete(left, h.ITT())
		}
	}
}

// Every task management function waits for the device, also for commands that an
// earlier one has aborted.
func TestStrongerMeansWait(t *testing.T) {
	l := newLab(t, Options{AbortTimeout: 20 * time.Millisecond})
	sick := newHeldDisk(1 << 20)
	l.add(sick)
	r := l.login(alice)
	r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	itt := r.command(0, ioWrite, cdb10(0x2a, 0, 1), 512, make([]byte, 512))
	<-sick.in
	for _, fn := range []byte{tmfAbortTask, tmfAbortTaskSet, tmfClearTaskSet, tmfLUNReset, tmfWarmReset} {
		if got := r.manage(fn, 0, itt); got != tmfRejected {
			t.Errorf("function %d: response %d while the device has the command", fn, got)
		}
	}
	close(sick.hold)
	eventually(t, "the device is empty", func() bool { return r.manage(tmfLUNReset, 0, 0) == tmfComplete })
}

func TestTaskManagement(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	r := l.login(alice)
	r.ready(0)
	for _, c := range []struct {
		fn   byte
		lun  int
		want byte
	}{
		{tmfAbortTask, 0, tmfNoTask},
		{tmfAbortTask, 9, tmfNoLUN},
		{tmfAbortTaskSet, 0, tmfComplete},
		{tmfClearACA, 0, tmfNotSupported},
		{tmfClearTaskSet, 0, tmfComplete},
		{tmfLUNReset, 0, tmfComplete},
		{tmfLUNReset, 9, tmfNoLUN},
		{tmfWarmReset, 0, tmfComplete},
		{tmfReassign, 0, tmfNoReassign},
		{9, 0, tmfNotSupported},
	} {
		if got := r.manage(c.fn, c.lun, 7000); got != c.want { // of itself, too
			t.Errorf("function %d of LUN %d: response %d, want %d", c.fn, c.lun, got, c.want)
		}
	}
	// The cold reset answers, and ends the connection.
	if got := r.manage(tmfColdReset, 0, 0); got != tmfComplete {
		t.Errorf("cold reset: response %d", got)
	}
	r.gone()
	l.alive(0)
}

// What one initiator resets, another hears of; what it aborts of the other's, too.
func TestOthersHearOfReset(t *testing.T) {
	l := newLab(t, Options{})
	sick := newHeldDisk(1 << 20)
	l.add(sick)
	a, b := l.login(alice), l.login(bob)
	for _, r := range []*raw{a, b} {
		r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	}
	a.command(0, ioRead, cdb10(0x28, 0, 1), 512, nil)
	<-sick.in
	a.ping()
	var h pdu.Header
	h.Set(pdu.OpTaskMgmt|0x40, pdu.FlagFinal|tmfClearTaskSet)
	h.SetITT(7000)
	binary.BigEndian.PutUint32(h[24:], b.cmdSN)
	b.must(b.send(&h, nil))
	b.ping()
	close(sick.hold)
	if h, _, err := b.recv(); err != nil || h.Opcode() != pdu.OpTaskMgmtResp || h[2] != tmfComplete {
		t.Fatalf("%v %s", err, &h)
	}
	if _, _, sense := a.answer(a.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil)); len(sense) < 16 || sense[2+12] != 0x2f {
		t.Errorf("sense %x, want COMMANDS CLEARED BY ANOTHER INITIATOR", sense)
	}
	if got := b.manage(tmfLUNReset, 0, 0); got != tmfComplete {
		t.Errorf("LUN RESET: %d", got)
	}
	for _, r := range []*raw{a, b} {
		if _, _, sense := r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil)); len(sense) < 16 || sense[2+12] != 0x29 {
			t.Errorf("sense %x, want BUS DEVICE RESET", sense)
		}
	}
}
