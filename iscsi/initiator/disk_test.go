package initiator

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/target"
	"github.com/cleave-san/cleave/lun"
)

func TestDisk(t *testing.T) {
	for _, digests := range []Digest{DigestOnDemand, DigestRequired} {
		l := newLab(t, target.Options{})
		m := newMemory(8 << 20)
		id := lun.NewIdentity()
		l.add(m, id)
		o := l.options()
		o.HeaderDigest, o.DataDigest = digests, digests
		d := l.open(o)
		if d.Size() != 8<<20 || d.ReadOnly() {
			t.Errorf("%d bytes, read-only %t", d.Size(), d.ReadOnly())
		}
		if logical, physical := d.Blocks(); logical != 512 || physical != 4096 {
			t.Errorf("blocks of %d and %d", logical, physical)
		}
		if want := id.NAAString() + " serial=" + id.Serial(); d.ID() != want {
			t.Errorf("identity %q, want %q", d.ID(), want)
		}
		p := pattern(5<<20+512, 1)
		mustWrite(t, d, 1<<20, p)
		if err := d.Sync(); err != nil || m.syncs.Load() != 1 {
			t.Errorf("sync: %v, %d times", err, m.syncs.Load())
		}
		if !bytes.Equal(m.content()[1<<20:][:len(p)], p) {
			t.Fatal("what was written is not what is there")
		}
		mustRead(t, d, 1<<20, p)
		mustRead(t, d, 1<<20+7, p[7:1000])
		mustRead(t, d, 1<<20+1000, p[1000:3<<20])

		mustWrite(t, d, 1<<20+100, []byte("hello"))
		copy(p[100:], "hello")
		mustWrite(t, d, 1<<20+500, bytes.Repeat([]byte{7}, 2000))
		copy(p[500:], bytes.Repeat([]byte{7}, 2000))
		mustRead(t, d, 1<<20, p)

		if _, err := d.ReadAt(make([]byte, 512), 8<<20); !errors.Is(err, lun.ErrOutOfRange) {
			t.Errorf("read past the end: %v", err)
		}
	}
}

func TestParallel(t *testing.T) {
	l := newLab(t, target.Options{})
	l.add(newMemory(16<<20), lun.NewIdentity())
	d := l.open(l.options())
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			base := int64(i) * 64 << 10
			for k := range 4 {
				n := (1 + r.IntN(16)) * 4096
				p := pattern(n, byte(i+k))
				if _, err := d.WriteAt(p, base); err != nil {
					t.Error(err)
					return
				}
				q := make([]byte, n)
				if _, err := d.ReadAt(q, base); err != nil || !bytes.Equal(p, q) {
					t.Errorf("%v, or other bytes", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Parts of one block written by several at once are all there in the end.
func TestPartsOfBlocks(t *testing.T) {
	l := newLab(t, target.Options{})
	m := newMemory(1 << 20)
	m.block = 4096
	l.add(m, lun.NewIdentity())
	d := l.open(l.options())
	if logical, _ := d.Blocks(); logical != 4096 {
		t.Fatalf("blocks of %d", logical)
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if _, err := d.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 128), int64(i)*128); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 64 {
		mustRead(t, d, int64(i)*128, bytes.Repeat([]byte{byte(i + 1)}, 128))
	}
}

func TestTrimAndExtents(t *testing.T) {
	l := newLab(t, target.Options{})
	m := thin{newMemory(4 << 20)}
	l.add(m, lun.NewIdentity())
	d := l.open(l.options())
	all := pattern(4<<20, 3)
	mustWrite(t, d, 0, all)
	if err := d.Trim(8192, 64<<10); err != nil {
		t.Fatal(err)
	}
	clear(all[8192:][:64<<10])
	if err := d.WriteZeroes(1<<20+100, 10000); err != nil {
		t.Fatal(err)
	}
	clear(all[1<<20+100:][:10000])
	if err := d.WriteZeroes(2<<20+100, 100); err != nil {
		t.Fatal(err)
	}
	clear(all[2<<20+100:][:100])
	if err := d.Unmap(3<<20, 4096); err != nil {
		t.Fatal(err)
	}
	clear(all[3<<20:][:4096])
	mustRead(t, d, 0, all)
	var got []lun.Extent
	collect := func(e lun.Extent) error { got = append(got, e); return nil }
	if err := d.Extents(4096, 1<<20, collect); err != nil {
		t.Fatal(err)
	}
	want := []lun.Extent{{Off: 4096, Len: 4096}, {Off: 8192, Len: 64 << 10, Hole: true}, {Off: 72 << 10, Len: 1<<20 + 4096 - 72<<10}}
	if diff := cmp.Diff(want, merged(got)); diff != "" {
		t.Error(diff)
	}
}

func merged(in []lun.Extent) (out []lun.Extent) {
	for _, e := range in {
		if k := len(out) - 1; k >= 0 && out[k].Hole == e.Hole && out[k].Off+out[k].Len == e.Off {
			out[k].Len += e.Len
		} else {
			out = append(out, e)
		}
	}
	return out
}

func TestReadOnly(t *testing.T) {
	l := newLab(t, target.Options{})
	n := l.add(newMemory(1<<20), lun.NewIdentity())
	l.must(l.s.SetMask(testTarget, mask.Anyone, mask.Grant{LUN: uint16(n), ReadOnly: true}))
	d := l.open(l.options())
	if _, err := d.WriteAt(make([]byte, 512), 0); !d.ReadOnly() || !errors.Is(err, lun.ErrReadOnly) {
		t.Errorf("%v", err)
	}
	l.must(l.s.SetMask(testTarget, mask.Anyone, mask.Grant{LUN: uint16(n)}))
	o := l.options()
	o.ReadOnly = true
	if err := l.open(o).Trim(0, 512); !errors.Is(err, lun.ErrReadOnly) {
		t.Errorf("%v", err)
	}
}

func TestCHAP(t *testing.T) {
	l := newLab(t, target.Options{RequireCHAP: true})
	l.add(newMemory(1<<20), lun.NewIdentity())
	right := mask.Credentials{User: "alice", Secret: []byte("right-secret-1"), MutualUser: "disk", MutualSecret: []byte("right-secret-2")}
	l.must(l.s.SetCredentials(alice, &right))
	for _, c := range []struct {
		name string
		chap *mask.Credentials
		want error
	}{
		{"mutual", &right, nil},
		{"one-way", &mask.Credentials{User: "alice", Secret: right.Secret}, nil},
		{"none", nil, ErrAuth},
		{"wrong secret", &mask.Credentials{User: "alice", Secret: []byte("wrong-secret-1")}, ErrAuth},
		{"wrong user", &mask.Credentials{User: "bob", Secret: right.Secret}, ErrAuth},
		{"wrong target", &mask.Credentials{User: "alice", Secret: right.Secret, MutualUser: "disk", MutualSecret: []byte("wrong-secret-2")}, ErrAuth},
		{"wrong target's name", &mask.Credentials{User: "alice", Secret: right.Secret, MutualUser: "dusk", MutualSecret: right.MutualSecret}, ErrAuth},
	} {
		o := l.options()
		o.CHAP = c.chap
		d, err := Open(context.Background(), o)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err != nil {
			for _, secret := range []string{"right-secret", "wrong-secret"} {
				if bytes.Contains([]byte(err.Error()), []byte(secret)) {
					t.Errorf("%s: a secret is in the error", c.name)
				}
			}
			continue
		}
		d.Close()
	}
}

func TestDiscovery(t *testing.T) {
	l := newLab(t, target.Options{})
	n := l.add(newMemory(1<<20), lun.NewIdentity())
	got, err := Discover(context.Background(), l.options())
	if err != nil || len(got) != 1 || got[0].Target != testTarget || len(got[0].Portals) == 0 {
		t.Errorf("%+v %v", got, err)
	}
	luns, err := LUNs(context.Background(), l.options())
	if err != nil || !cmp.Equal(luns, []int{n}) {
		t.Errorf("LUNs %v %v", luns, err)
	}
}

func TestNoSuchLUN(t *testing.T) {
	l := newLab(t, target.Options{})
	l.add(newMemory(1<<20), lun.NewIdentity())
	o := l.options()
	o.LUN = 7
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrNoLUN) {
		t.Errorf("%v", err)
	}
	o = l.options()
	o.Target = "iqn.2026-01.test:nothing"
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrNoTarget) && !errors.Is(err, ErrAuth) {
		t.Errorf("%v", err)
	}
	o = l.options()
	o.Identity = "naa.3000 serial=x"
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrIdentity) {
		t.Errorf("%v", err)
	}
	o = l.options()
	o.Portals = append([]string{"127.0.0.1:1"}, o.Portals...)
	l.open(o)
}

// A request allocates nothing once the session is warm.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	l := newLab(t, target.Options{})
	l.add(newMemory(1<<20), lun.NewIdentity())
	d := l.open(l.options())
	p := make([]byte, 4096)
	for _, c := range []struct {
		name string
		fn   func([]byte, int64) (int, error)
	}{{"read", d.ReadAt}, {"write", d.WriteAt}} {
		// The target's own share is in it too, which is nothing either.
		if n := testing.AllocsPerRun(2000, func() {
			if _, err := c.fn(p, 4096); err != nil {
				t.Fatal(err)
			}
		}); n >= 0.5 {
			t.Errorf("%s: %.2f allocations", c.name, n)
		}
	}
}

func mutual() *mask.Credentials {
	return &mask.Credentials{User: "alice", Secret: []byte("right-secret-1"), MutualUser: "disk", MutualSecret: []byte("right-secret-2")}
}
