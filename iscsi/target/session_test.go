package target

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/lun"
)

// Data of many sizes goes out by R2T and comes back, with every combination of
// digests and burst lengths.
func TestTransfers(t *testing.T) {
	for name, keys := range map[string][]pdu.Key{
		"defaults": nil,
		"digests":  {{Name: "HeaderDigest", Value: "CRC32C"}, {Name: "DataDigest", Value: "CRC32C"}},
		"small bursts": {{Name: "MaxBurstLength", Value: "4096"}, {Name: "FirstBurstLength", Value: "1024"},
			{Name: "MaxRecvDataSegmentLength", Value: "700"}, {Name: "MaxOutstandingR2T", Value: "3"}},
		"no immediate data": {{Name: "ImmediateData", Value: "No"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, Options{})
			d := newDisk(16 << 20)
			l.add(d)
			r := l.login(alice, keys...)
			r.ready(0)
			for _, blocks := range []int{1, 3, 128, 129, 1000, 4096} {
				p := make([]byte, blocks*512)
				for i := range p {
					p[i] = byte(rand.Uint32())
				}
				itt := r.command(0, ioWrite, cdb10(0x2a, 17, uint16(blocks)), uint32(len(p)), nil)
				r.feed(itt, p)
				there := make([]byte, len(p))
				if _, err := d.ReadAt(there, 17*512); err != nil || !bytes.Equal(there, p) {
					t.Fatalf("%d blocks: written wrong", blocks)
				}
				st, got, _ := r.answer(r.command(0, ioRead, cdb10(0x28, 17, uint16(blocks)), uint32(len(p)), nil))
				if st != 0 || !bytes.Equal(got, p) {
					t.Fatalf("%d blocks: status %d, %d bytes read", blocks, st, len(got))
				}
			}
		})
	}
}

// feed answers R2Ts until the command has ended.
func (r *raw) feed(itt uint32, p []byte) {
	r.t.Helper()
	for {
		h, _, err := r.recv()
		r.must(err)
		if h.Opcode() == pdu.OpSCSIResponse {
			if h.ITT() != itt || h[3] != 0 {
				r.t.Fatalf("write ended: %s status %d", &h, h[3])
			}
			return
		}
		if h.Opcode() != pdu.OpR2T || h.ITT() != itt {
			r.t.Fatalf("unexpected %s", &h)
		}
		off, n := h.Offset(), h.Residual() // desired length stands there
		var q pdu.Header
		for sn := uint32(0); n > 0; sn++ {
			m := min(n, 8000)
			flags := byte(0)
			if m == n {
				flags = pdu.FlagFinal
			}
			q.Set(pdu.OpDataOut, flags)
			q.SetITT(itt)
			q.SetTTT(h.TTT())
			q.SetDataSN(sn)
			q.SetOffset(off)
			r.must(r.send(&q, p[off:off+m]))
			off, n = off+m, n-m
		}
	}
}

// A device that hangs stalls nothing else: not another LUN in the same session, not
// another session, not a change of the LUNs; and it can be taken away.
func TestHangingDevice(t *testing.T) {
	l := newLab(t, Options{QueueDepth: 8, Workers: 4, AbortTimeout: 100 * time.Millisecond})
	sick := newHeldDisk(1 << 20)
	l.add(sick)
	l.add(newDisk(1 << 20))
	r := l.login(alice)
	for range 3 { // unit attentions
		r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	}
	r.ready(1)
	var hung []uint32
	for range 8 {
		hung = append(hung, r.command(0, ioRead, cdb10(0x28, 0, 1), 512, nil))
	}
	for range 4 {
		<-sick.in
	}
	if st, _, _ := r.answer(r.command(0, ioRead, cdb10(0x28, 0, 1), 512, nil)); st != 0x28 {
		t.Errorf("one more than the queue holds: status %#x, want TASK SET FULL", st)
	}
	if st, got, _ := r.answer(r.command(1, ioRead, cdb10(0x28, 0, 8), 4096, nil)); st != 0 || len(got) != 4096 {
		t.Errorf("the other LUN: status %d", st)
	}
	l.alive(1)

	// A reset can't be said to be complete while the device is at work.
	var h pdu.Header
	h.Set(pdu.OpTaskMgmt|0x40, pdu.FlagFinal|tmfLUNReset)
	h.SetITT(4242)
	binary.BigEndian.PutUint32(h[24:], r.cmdSN)
	r.must(r.send(&h, nil))
	a, _, err := r.recv()
	r.must(err)
	if a.Opcode() != pdu.OpTaskMgmtResp || a[2] != tmfRejected {
		t.Errorf("LUN RESET: %s response %d", &a, a[2])
	}
	_ = hung

	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := l.s.RemoveLUN(ctx, testTarget, 0); !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("RemoveLUN: %v", err)
	}
	l.alive(1)
	close(sick.hold)
	if err := l.s.RemoveLUN(context.Background(), testTarget, 0); err != nil {
		t.Errorf("RemoveLUN, after the device came back: %v", err)
	}
}

// Commands that run while their LUN goes away are answered.
func TestRemoveCutsOff(t *testing.T) {
	l := newLab(t, Options{})
	sick := newHeldDisk(1 << 20)
	l.add(sick)
	r := l.login(alice)
	r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	itt := r.command(0, ioRead, cdb10(0x28, 0, 1), 512, nil)
	<-sick.in
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.s.RemoveLUN(ctx, testTarget, 0); !errors.Is(err, ErrBusy) {
		t.Errorf("RemoveLUN: %v", err)
	}
	if st, _, sense := r.answer(itt); st != 2 || len(sense) < 16 || sense[2+2] != 5 || sense[2+12] != 0x25 {
		t.Errorf("status %d sense %x, want LOGICAL UNIT NOT SUPPORTED", st, sense)
	}
	close(sick.hold)
	l.must(l.s.RemoveLUN(context.Background(), testTarget, 0))
	if st, _, sense := r.answer(r.command(0, ioRead, cdb10(0x28, 0, 1), 512, nil)); st != 2 || sense[2+12] != 0x25 {
		t.Errorf("after it: status %d sense %x", st, sense)
	}
}

// An initiator that doesn't read its data holds up nobody else, and no more memory
// than agreed.
func TestInitiatorThatDoesNotRead(t *testing.T) {
	l := newLab(t, Options{ReadMemory: 1 << 20})
	l.add(newDisk(16 << 20))
	r := l.login(alice)
	r.ready(0)
	for range 100 {
		r.command(0, ioRead, cdb10(0x28, 0, 4096), 2<<20, nil)
	}
	l.alive(0)
	var owed int64
	l.s.mu.Lock()
	for c := range l.s.conns {
		c.tx.mu.Lock()
		owed = max(owed, c.tx.owed)
		c.tx.mu.Unlock()
	}
	l.s.mu.Unlock()
	if owed > 1<<20 {
		t.Errorf("%d bytes wait", owed)
	}
}

func TestAbortTask(t *testing.T) {
	l := newLab(t, Options{})
	sick := newHeldDisk(1 << 20)
	l.add(sick)
	r := l.login(alice)
	r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	itt := r.command(0, ioRead, cdb10(0x28, 0, 1), 512, nil)
	<-sick.in
	tmf := func(ref uint32) {
		var h pdu.Header
		h.Set(pdu.OpTaskMgmt|0x40, pdu.FlagFinal|tmfAbortTask)
		h.SetITT(5000)
		h.SetTTT(ref) // the referenced task tag stands there
		binary.BigEndian.PutUint32(h[24:], r.cmdSN)
		r.must(r.send(&h, nil))
	}
	tmf(itt)
	r.ping() // the abort has been seen
	close(sick.hold)
	if h, _, err := r.recv(); err != nil || h.Opcode() != pdu.OpTaskMgmtResp || h[2] != tmfComplete {
		t.Errorf("%v %s response %d", err, &h, h[2])
	}
	tmf(itt)
	if h, _, err := r.recv(); err != nil || h[2] != tmfNoTask {
		t.Errorf("again: %v %s response %d", err, &h, h[2])
	}
	r.ready(0)
}

// ping sends a NOP-Out and waits for its answer: all that was sent before has then
// been looked at.
func (r *raw) ping() {
	r.t.Helper()
	var h pdu.Header
	h.Set(pdu.OpNopOut|0x40, pdu.FlagFinal)
	h.SetITT(6000)
	h.SetTTT(pdu.NoTag)
	binary.BigEndian.PutUint32(h[24:], r.cmdSN)
	r.must(r.send(&h, []byte("ping")))
	if a, data, err := r.recv(); err != nil || a.Opcode() != pdu.OpNopIn || a.ITT() != 6000 || string(data) != "ping" {
		r.t.Fatalf("%v %s %q", err, &a, data)
	}
}

func TestReinstatement(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	old := l.login(alice)
	old.ready(0)
	r := l.login(alice) // the same ISID
	old.gone()
	r.ready(0)
	if n := len(l.s.Sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestLogout(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	r := l.login(alice)
	r.logout()
	eventually(t, "session has ended", func() bool { return len(l.s.Sessions()) == 0 })
}

func TestSilentInitiatorIsDropped(t *testing.T) {
	l := newLab(t, Options{NopInterval: 20 * time.Millisecond})
	l.add(newDisk(1 << 20))
	r := l.login(alice)
	h, _, err := r.recv()
	if err != nil || h.Opcode() != pdu.OpNopIn || h.ITT() != pdu.NoTag || h.TTT() == pdu.NoTag {
		t.Fatalf("%v %s, want a ping", err, &h)
	}
	r.gone()
}

func TestNumbersAreNotReused(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	l.add(newDisk(1 << 20))
	r := l.login(alice)
	r.ready(0)
	r.ready(1)
	l.must(l.s.RemoveLUN(context.Background(), testTarget, 1))
	if _, err := l.s.AddLUN(testTarget, 1, LUN{Device: newDisk(4096)}); !errors.Is(err, ErrNumberRetired) {
		t.Errorf("while the session lives: %v", err)
	}
	if n, err := l.s.AddLUN(testTarget, NextLUN, LUN{Device: newDisk(4096)}); err != nil || n != 2 {
		t.Errorf("next number: %d %v", n, err)
	}
	// A hidden LUN is not there, and the session hears of the change.
	if st, _, sense := r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil)); st != 2 || sense[2+12] != 0x3f || sense[2+13] != 0x0e {
		t.Errorf("status %d sense %x, want REPORTED LUNS DATA HAS CHANGED", st, sense)
	}
	// Cut off, it may come back and still have a device for the old one.
	r.nc.Close()
	eventually(t, "session has ended", func() bool { return len(l.s.Sessions()) == 0 })
	if _, err := l.s.AddLUN(testTarget, 1, LUN{Device: newDisk(4096)}); !errors.Is(err, ErrNumberRetired) {
		t.Errorf("after a cut: %v", err)
	}
	l.login(alice).logout()
	eventually(t, "session has ended", func() bool { return len(l.s.Sessions()) == 0 })
	if _, err := l.s.AddLUN(testTarget, 1, LUN{Device: newDisk(4096)}); err != nil {
		t.Errorf("after a logout: %v", err)
	}
	// The grants went with the old one.
	r = l.login(bob)
	if st, _, sense := r.answer(r.command(1, pdu.FlagFinal, make([]byte, 16), 0, nil)); st != 2 || sense[2+12] != 0x25 {
		t.Errorf("a new LUN under an old number is visible: status %d sense %x", st, sense)
	}
}

// Logins, logouts, cut connections and I/O, while LUNs come and go, change their
// masks and are reset.
func TestStorm(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var logins, changes atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				r := l.dial()
				r.isid = byte(i % 5) // some reinstate each other
				var q pdu.Header
				q.Set(pdu.OpLogin|0x40, 0x87)
				q.SetISID([6]byte{0x80, 1, 2, 3, 4, r.isid})
				q.SetITT(99)
				binary.BigEndian.PutUint32(q[24:], 1)
				if r.send(&q, pdu.AppendText(nil, names(alice)...)) == nil {
					if h, _, err := r.recv(); err == nil && h[36] == 0 {
						logins.Add(1)
						r.noise(i)
					}
				}
				r.nc.Close()
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			n, err := l.s.AddLUN(testTarget, NextLUN, LUN{Device: newDisk(1 << 20), Writable: true})
			if err != nil {
				t.Error(err)
				return
			}
			l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0}, mask.Grant{LUN: uint16(n), ReadOnly: n%2 == 0}))
			l.must(l.s.SetWritable(testTarget, n, n%3 == 0))
			_, _ = l.s.Stats(testTarget, n)
			l.s.Sessions()
			if err := l.s.RemoveLUN(context.Background(), testTarget, n); err != nil {
				t.Error(err)
			}
			changes.Add(1)
		}
	})
	wg.Wait()
	if logins.Load() == 0 || changes.Load() == 0 {
		t.Errorf("%d logins, %d changes", logins.Load(), changes.Load())
	}
	// A reset that arrived late would abort the next session's commands as well.
	eventually(t, "the storm's sessions end", func() bool { return len(l.s.Sessions()) == 0 })
	l.alive(0)
}

// noise sends some commands and takes some answers; errors are all right.
func (r *raw) noise(i int) {
	var h pdu.Header
	for k := range 20 {
		switch (i + k) % 5 {
		case 0:
			h.Set(pdu.OpTaskMgmt|0x40, pdu.FlagFinal|byte(k%8))
		case 1: // its data is never sent, or cut off in the middle
			h.Set(pdu.OpSCSICommand, ioWrite)
			binary.BigEndian.PutUint32(h[20:], 256<<10)
			copy(h[32:], cdb10(0x2a, 0, 512))
		default:
			h.Set(pdu.OpSCSICommand, ioRead)
			binary.BigEndian.PutUint32(h[20:], 65536)
			copy(h[32:], cdb10(0x28, 0, 128))
		}
		h.SetITT(uint32(k))
		h.SetLUN(uint64(k%3) << 48)
		binary.BigEndian.PutUint32(h[24:], r.cmdSN)
		if h.Opcode() == pdu.OpSCSICommand {
			r.cmdSN++
		}
		if r.send(&h, nil) != nil {
			return
		}
	}
	for range 10 {
		a, _, err := r.recv()
		if err != nil {
			return
		}
		if a.Opcode() == pdu.OpR2T {
			h.Set(pdu.OpDataOut, 0)
			h.SetITT(a.ITT())
			h.SetTTT(a.TTT())
			h.SetOffset(a.Offset())
			h.SetDataLen(8192)
			_, _ = r.nc.Write(append(h[:], make([]byte, 100)...)) // and no more of it
			return
		}
	}
}

var _ lun.Device = (*disk)(nil)
