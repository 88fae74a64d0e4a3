package target

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/iscsi/scsi"
	"github.com/cleave-san/cleave/lun"
)

// copyCDB and copyList are an EXTENDED COPY of n blocks.
func copyList(from, to lun.Identity, n, fromLBA, toLBA uint16) (cdb, list []byte) {
	list = make([]byte, 16)
	list[3], list[11] = 64, 28
	for _, id := range []lun.Identity{from, to} {
		naa := id.NAA()
		d := make([]byte, 32)
		d[0], d[4], d[5], d[7], d[30] = 0xe4, 1, 3, 8, 2
		copy(d[8:], naa[:])
		list = append(list, d...)
	}
	s := make([]byte, 28)
	s[0], s[3], s[7] = 2, 24, 1
	binary.BigEndian.PutUint16(s[10:], n)
	binary.BigEndian.PutUint16(s[18:], fromLBA)
	binary.BigEndian.PutUint16(s[26:], toLBA)
	list = append(list, s...)
	return []byte{0x83, 13: byte(len(list)), 15: 0}, list
}

// sense is the sense data of a response: key, ASC and ASCQ.
func sense(d []byte) [3]byte {
	if len(d) < 16 {
		return [3]byte{}
	}
	return [3]byte{d[4], d[14], d[15]}
}

// A copy reaches what the initiator sees on this target, and nothing else.
func TestCopyBetweenLUNs(t *testing.T) {
	l := newLab(t, Options{})
	src, dst, hidden := newDisk(1<<20), newDisk(1<<20), newDisk(1<<20)
	ids := []lun.Identity{lun.NewIdentity(), lun.NewIdentity(), lun.NewIdentity()}
	for i, d := range []*disk{src, dst, hidden} {
		_, err := l.s.AddLUN(testTarget, i, LUN{Device: d, Identity: ids[i], Writable: true})
		l.must(err)
	}
	l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0}, mask.Grant{LUN: 1}))
	for i := range src.data {
		src.data[i] = byte(i * 7)
	}
	r := l.login(alice)
	r.ready(0)
	r.ready(1)
	copyTo := func(to lun.Identity) (byte, [3]byte) {
		cdb, list := copyList(ids[0], to, 100, 5, 50)
		st, _, d := r.answer(r.command(0, ioWrite, cdb, uint32(len(list)), list))
		return st, sense(d)
	}
	part := func(d *disk, from, n int) []byte {
		p := make([]byte, n)
		_, err := d.ReadAt(p, int64(from))
		l.must(err)
		return p
	}
	if st, s := copyTo(ids[1]); st != 0 || !bytes.Equal(part(dst, 50*512, 100*512), part(src, 5*512, 100*512)) {
		t.Errorf("status %d sense %x", st, s)
	}
	if st, s := copyTo(ids[2]); st != 2 || s != [3]byte{0x0a, 0x0d, 0x02} || !bytes.Equal(part(hidden, 0, 1<<20), make([]byte, 1<<20)) {
		t.Errorf("a LUN that the mask hides: status %d sense %x", st, s)
	}
	l.must(l.s.RemoveLUN(context.Background(), testTarget, 1))
	if st, _ := copyTo(ids[1]); st != 2 { // the LUN change first
		t.Errorf("status %d", st)
	}
	if st, s := copyTo(ids[1]); st != 2 || s != [3]byte{0x0a, 0x0d, 0x02} {
		t.Errorf("a LUN that was removed: status %d sense %x", st, s)
	}
}

// RemoveLUN waits for a copy by another LUN as for a command.
func TestRemoveLUNWaitsForCopies(t *testing.T) {
	l := newLab(t, Options{})
	src, dst := newDisk(1<<20), newHeldDisk(1<<20)
	ids := []lun.Identity{lun.NewIdentity(), lun.NewIdentity()}
	_, err := l.s.AddLUN(testTarget, 0, LUN{Device: src, Identity: ids[0], Writable: true})
	l.must(err)
	_, err = l.s.AddLUN(testTarget, 1, LUN{Device: dst, Identity: ids[1], Writable: true})
	l.must(err)
	l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0}, mask.Grant{LUN: 1}))
	r := l.login(alice)
	r.ready(0)
	cdb, list := copyList(ids[0], ids[1], 1, 0, 0)
	r.command(0, ioWrite, cdb, uint32(len(list)), list)
	<-dst.in
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.s.RemoveLUN(ctx, testTarget, 1); !errors.Is(err, ErrBusy) {
		t.Errorf("RemoveLUN during the copy: %v", err)
	}
	close(dst.hold)
	l.must(l.s.RemoveLUN(context.Background(), testTarget, 1))
}

// Two portal groups are two target ports, each with an access state of its own.
func TestPortalGroups(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	second, err := l.s.ListenGroup(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), 2)
	l.must(err)
	if _, err := l.s.ListenGroup(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), 0); err == nil {
		t.Error("portal group 0")
	}
	a := l.login(alice)
	other := *l
	other.portal = second
	b := other.dial()
	st, keys, _ := b.loginPDU(1, 3, true, names(alice)...)
	if st != 0 || keys["TargetPortalGroupTag"] != "2" {
		t.Fatalf("login by the second portal: %04x %v", st, keys)
	}
	a.ready(0)
	b.ready(0)
	test := func(r *raw) [3]byte {
		_, _, d := r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
		return sense(d)
	}
	l.must(l.s.SetAccess(testTarget, 2, scsi.Standby))
	for _, r := range []*raw{a, b} {
		if s := test(r); s != [3]byte{6, 0x2a, 0x06} {
			t.Errorf("sense %x, want ASYMMETRIC ACCESS STATE CHANGED", s)
		}
	}
	if s := test(a); s != [3]byte{} {
		t.Errorf("the first path: %x", s)
	}
	if s := test(b); s != [3]byte{2, 0x04, 0x0b} {
		t.Errorf("the second path: %x, want TARGET PORT IN STANDBY STATE", s)
	}
	// A LUN that comes later has the same state.
	n := l.add(newDisk(1 << 20))
	cdb := []byte{0xa3, 0x0a, 9: 255, 15: 0}
	_, got, _ := a.answer(a.command(n, ioRead, cdb, 255, nil))
	if want := []byte{0, 0, 0, 24, 0, 15, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 15, 0, 2, 0}; !bytes.HasPrefix(got, want) && len(got) == 28 {
		t.Errorf("REPORT TARGET PORT GROUPS: %x", got)
	}
	// SendTargets tells the group of each portal.
	var h pdu.Header
	h.Set(pdu.OpText, pdu.FlagFinal)
	h.SetITT(77)
	h.SetTTT(pdu.NoTag)
	binary.BigEndian.PutUint32(h[24:], a.cmdSN)
	a.cmdSN++
	a.must(a.send(&h, pdu.AppendText(nil, pdu.Key{Name: "SendTargets", Value: ""})))
	for {
		h, d, err := a.recv()
		a.must(err)
		if h.Opcode() != pdu.OpTextResp {
			continue
		}
		for _, want := range []string{l.portal.String() + ",1\x00", second.String() + ",2\x00"} {
			if !strings.Contains(string(d), want) {
				t.Errorf("SendTargets lacks %q: %q", want, d)
			}
		}
		break
	}
	if err := l.s.SetAccess(testTarget, 2, 9); err == nil {
		t.Error("no such state")
	}
	if err := l.s.SetAccess("iqn.2026-01.test:none", 2, scsi.Standby); !errors.Is(err, ErrNoTarget) {
		t.Error(err)
	}
}

// kept is a store that outlives servers.
type kept struct {
	mu sync.Mutex
	m  map[lun.Identity][]byte
}

func (k *kept) Load(id lun.Identity) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.m[id], nil
}

func (k *kept) Save(id lun.Identity, b []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.m[id] = bytes.Clone(b)
	return nil
}

// reserve performs PERSISTENT RESERVE OUT.
func (r *raw) reserve(action, kind byte, key, newKey uint64, flags byte) byte {
	r.t.Helper()
	p := make([]byte, 24)
	binary.BigEndian.PutUint64(p, key)
	binary.BigEndian.PutUint64(p[8:], newKey)
	p[20] = flags
	st, _, _ := r.answer(r.command(0, ioWrite, []byte{0x5f, action, kind, 8: 24, 15: 0}, 24, p))
	return st
}

func (r *raw) write() byte {
	r.t.Helper()
	st, _, _ := r.answer(r.command(0, ioWrite, cdb10(0x2a, 0, 1), 512, make([]byte, 512)))
	return st
}

// A cluster's fence stands when the server has been replaced.
func TestReservationsOutliveTheServer(t *testing.T) {
	store, id, d := &kept{m: map[lun.Identity][]byte{}}, lun.NewIdentity(), newDisk(1<<20)
	open := func() *lab {
		l := newLab(t, Options{Reservations: store})
		_, err := l.s.AddLUN(testTarget, 0, LUN{Device: d, Identity: id, Writable: true})
		l.must(err)
		l.must(l.s.SetMask(testTarget, mask.Anyone, mask.Grant{LUN: 0}))
		return l
	}
	l := open()
	r := l.login(alice)
	r.ready(0)
	if st := r.reserve(0, 0, 0, 7, 1); st != 0 { // REGISTER, APTPL
		t.Fatalf("status %#x", st)
	}
	if st := r.reserve(1, 3, 7, 0, 0); st != 0 { // RESERVE, exclusive access
		t.Fatalf("status %#x", st)
	}
	l.must(l.s.Close())
	l = open()
	a, b := l.login(alice), l.login(bob)
	a.ready(0)
	b.ready(0)
	if st := a.write(); st != 0 {
		t.Errorf("the holder after the restart: status %#x", st)
	}
	if st := b.write(); st != 0x18 {
		t.Errorf("another after the restart: status %#x, want RESERVATION CONFLICT", st)
	}
	store.m[id] = []byte("damaged")
	s := New(Options{Reservations: store})
	defer s.Close()
	l.must(s.AddTarget(testTarget, ""))
	if _, err := s.AddLUN(testTarget, 0, LUN{Device: d, Identity: id}); !errors.Is(err, scsi.ErrReservations) {
		t.Errorf("served in spite of damaged reservations: %v", err)
	}
}

// PREEMPT AND ABORT is answered when the victim's write has left the device, and
// not before; a device that hangs makes it fail.
func TestPreemptAndAbortFences(t *testing.T) {
	l := newLab(t, Options{AbortTimeout: 300 * time.Millisecond})
	d := newHeldDisk(1 << 20)
	l.add(d)
	a, b := l.login(alice), l.login(bob)
	a.ready(0)
	b.ready(0)
	if a.reserve(0, 0, 0, 1, 0) != 0 || b.reserve(0, 0, 0, 2, 0) != 0 || b.reserve(1, 5, 2, 0, 0) != 0 {
		t.Fatal("registering")
	}
	b.command(0, ioWrite, cdb10(0x2a, 0, 1), 512, make([]byte, 512))
	<-d.in
	if st := a.reserve(5, 5, 1, 2, 0); st != 2 {
		t.Errorf("fenced off a write that still hangs: status %#x", st)
	}
	close(d.hold)
	if st := a.reserve(6, 0, 0, 1, 0); st != 0 {
		t.Errorf("status %#x", st)
	}
	b.ready(0)
	if st := b.write(); st != 0x18 {
		t.Errorf("the victim writes: status %#x", st)
	}
}
