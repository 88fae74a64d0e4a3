package initiator

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/target"
	"github.com/cleave-san/cleave/lun"
)

// Connections are cut in the middle of reads and writes, again and again; every
// request ends well and every byte is right.
func TestCuts(t *testing.T) {
	l := newLab(t, target.Options{})
	m := newMemory(16 << 20)
	l.add(m, lun.NewIdentity())
	d := l.open(l.options())
	var done atomic.Bool
	var requests [24]atomic.Int64
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			base := int64(i) * 512 << 10
			for k := 0; !done.Load(); k++ {
				n := (1 + r.IntN(100)) * 4096
				p := pattern(n, byte(i*7+k))
				if _, err := d.WriteAt(p, base); err != nil {
					t.Error(err)
					return
				}
				q := make([]byte, n)
				if _, err := d.ReadAt(q, base); err != nil || !bytes.Equal(p, q) {
					t.Errorf("%v, or other bytes", err)
					return
				}
				requests[i].Add(2)
			}
		})
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 30 {
		var before [len(requests)]int64
		for i := range requests {
			before[i] = requests[i].Load()
		}
		old := d.cur.Load()
		if r.IntN(2) == 0 {
			l.r.cut()
		} else {
			l.r.cutAfter(r.Int64N(300 << 10))
		}
		// For all of them: a request that is lost too often fails, and rightly.
		eventually(t, "a new session that works", func() bool {
			works := d.cur.Load() != old
			for i := range requests {
				works = works && requests[i].Load() > before[i]
			}
			return t.Failed() || works
		})
	}
	done.Store(true)
	wg.Wait()
}

// eventually polls until ok, or fails after a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// Unsynced writes and a lost connection make the next Sync fail, for each that
// covers them, and only it.
func TestSyncAfterLoss(t *testing.T) {
	l := newLab(t, target.Options{})
	l.add(newMemory(1<<20), lun.NewIdentity())
	d := l.open(l.options())
	p := pattern(4096, 1)
	mustWrite(t, d, 0, p)
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	l.r.cut()
	mustRead(t, d, 0, p)
	if err := d.Sync(); err != nil {
		t.Errorf("all was synced before the cut: %v", err)
	}
	mustWrite(t, d, 4096, p)
	l.r.cut()
	mustRead(t, d, 4096, p)
	mustWrite(t, d, 8192, p)
	if err := d.Sync(); !errors.Is(err, ErrCacheLost) {
		t.Errorf("%v", err)
	}
	mustWrite(t, d, 8192, p)
	if err := d.Sync(); err != nil {
		t.Errorf("the loss was told already: %v", err)
	}
}

func TestStability(t *testing.T) {
	var a stability
	a.wrote(1)
	up1, l1, clean := a.begin()
	up2, l2, _ := a.begin()
	if clean || a.settle(up1, l1, 2) || a.settle(up2, l2, 2) {
		t.Error("two flushes under way: both must tell of the loss")
	}
	if _, _, clean := a.begin(); !clean {
		t.Error("not clean after it was told")
	}
	// A write that began before the loss, taken down after a younger one.
	a.wrote(2)
	a.wrote(1)
	if up, l, _ := a.begin(); a.settle(up, l, 2) {
		t.Error("the older write is forgotten")
	}
	a.wrote(2)
	if up, l, _ := a.begin(); !a.settle(up, l, 2) {
		t.Error("nothing was lost")
	}
}

// second is another server under the same names, which the relay leads to from
// now on.
func (l *lab) second(d lun.Device, id lun.Identity) *target.Server {
	l.t.Helper()
	s := target.New(target.Options{})
	l.t.Cleanup(func() { s.Close() })
	l.must(s.AddTarget(testTarget, ""))
	at, err := s.Listen(context.Background(), netip.MustParseAddrPort("127.0.0.1:0"))
	l.must(err)
	_, err = s.AddLUN(testTarget, 0, target.LUN{Device: d, Writable: true, Identity: id})
	l.must(err)
	l.must(s.SetMask(testTarget, mask.Anyone, mask.Grant{LUN: 0}))
	l.r.mu.Lock()
	l.r.to = at.String()
	l.r.mu.Unlock()
	l.r.cut()
	return s
}

// Behind the same number stands another LUN: not a byte of it is told, and not a
// byte written to it.
func TestSwappedLUN(t *testing.T) {
	l := newLab(t, target.Options{})
	id := lun.NewIdentity()
	m := newMemory(1 << 20)
	l.add(m, id)
	d := l.open(l.options())
	p := pattern(4096, 9)
	mustWrite(t, d, 0, p)
	other := newMemory(1 << 20)
	l.second(other, lun.NewIdentity())
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrIdentity) {
		t.Errorf("read: %v", err)
	}
	if _, err := d.WriteAt(p, 4096); !errors.Is(err, ErrIdentity) {
		t.Errorf("write: %v", err)
	}
	if !bytes.Equal(other.content(), make([]byte, 1<<20)) {
		t.Error("the wrong LUN was written to")
	}
	// The right one is back: so is the disk.
	l.second(m, id)
	eventually(t, "the disk to be back", func() bool {
		_, err := d.ReadAt(make([]byte, 512), 0)
		return err == nil
	})
	mustRead(t, d, 0, p)
}

func TestSmallerLUN(t *testing.T) {
	l := newLab(t, target.Options{})
	id := lun.NewIdentity()
	l.add(newMemory(1<<20), id)
	d := l.open(l.options())
	l.second(newMemory(1<<19), id)
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrIdentity) {
		t.Errorf("%v", err)
	}
}

// A target that is started anew is found again.
func TestRestart(t *testing.T) {
	l := newLab(t, target.Options{})
	id, m := lun.NewIdentity(), newMemory(1<<20)
	l.add(m, id)
	d := l.open(l.options())
	p := pattern(4096, 9)
	mustWrite(t, d, 0, p)
	l.r.mu.Lock()
	l.r.down = true
	l.r.mu.Unlock()
	l.r.cut()
	l.must(l.s.Close())
	read := make(chan error)
	go func() {
		q := make([]byte, 4096)
		_, err := d.ReadAt(q, 0)
		if err == nil && !bytes.Equal(p, q) {
			err = errors.New("other bytes")
		}
		read <- err
	}()
	eventually(t, "the loss to be seen", func() bool { return d.cur.Load().lost() != nil })
	l.second(m, id)
	l.r.mu.Lock()
	l.r.down = false
	l.r.mu.Unlock()
	if err := <-read; err != nil {
		t.Error(err)
	}
	if err := d.Sync(); !errors.Is(err, ErrCacheLost) {
		t.Errorf("sync: %v", err)
	}
}

func TestVanishedLUN(t *testing.T) {
	l := newLab(t, target.Options{})
	n := l.add(newMemory(1<<20), lun.NewIdentity())
	d := l.open(l.options())
	l.must(l.s.RemoveLUN(context.Background(), testTarget, n))
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrNoLUN) {
		t.Errorf("%v", err)
	}
}

// Without a target, requests end when the time for recovery is over, and at once
// when the disk is closed.
func TestOutage(t *testing.T) {
	l := newLab(t, target.Options{})
	l.add(newMemory(1<<20), lun.NewIdentity())
	o := l.options()
	o.Recovery = 200 * time.Millisecond
	d := l.open(o)
	patient := l.open(l.options())
	l.r.mu.Lock()
	l.r.down = true
	l.r.mu.Unlock()
	l.r.cut()
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrLost) {
		t.Errorf("%v", err)
	}
	read := make(chan error)
	go func() {
		_, err := patient.ReadAt(make([]byte, 512), 0)
		read <- err
	}()
	eventually(t, "an attempt", func() bool {
		patient.mu.Lock()
		defer patient.mu.Unlock()
		return patient.dialing != nil
	})
	l.must(patient.Close())
	if err := <-read; !errors.Is(err, lun.ErrClosed) {
		t.Errorf("%v", err)
	}
	if _, err := patient.ReadAt(make([]byte, 512), 0); !errors.Is(err, lun.ErrClosed) {
		t.Errorf("%v", err)
	}
	l.must(patient.Close())
}

// The second portal is taken when the first is gone.
func TestPortals(t *testing.T) {
	l := newLab(t, target.Options{})
	m := newMemory(1 << 20)
	l.add(m, lun.NewIdentity())
	o := l.options()
	o.Portals = append(o.Portals, newRelay(t, l.r.to).addr)
	d := l.open(o)
	p := pattern(4096, 5)
	mustWrite(t, d, 0, p)
	l.r.mu.Lock()
	l.r.down = true
	l.r.mu.Unlock()
	l.r.cut()
	mustRead(t, d, 0, p)
	mustWrite(t, d, 4096, p)
}
