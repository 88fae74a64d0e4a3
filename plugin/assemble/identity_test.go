package assemble

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/orchestrator"
)

// TestNewIdentityBesideTheOriginal: production's own host, to which the array
// presents the volumes, gets no LUN of a set; with a new identity it gets the clean
// content under a volume group and PVs that it does not have yet.
func TestNewIdentityBesideTheOriginal(t *testing.T) {
	s := newLVMScene(t, "vgo4/str", "vgo4/good", "d5b583b019a19187dd4aa6a1b6b42055552eeb29900dbf73ade4ee54ba2bf522", "lvm-o4-a", "lvm-o4-b")
	ctx := t.Context()
	set := s.create()
	before := s.splits(set)
	for _, dirty := range []bool{false, true} {
		_, err := s.engine.Expose(ctx, set.ID, orchestrator.ExposeRequest{Initiators: []string{backup, production}, Dirty: dirty})
		if !errors.Is(err, orchestrator.ErrUsage) || !strings.Contains(err.Error(), production+" has the original of disk vda") {
			t.Errorf("to production, dirty %v: %v", dirty, err)
		}
	}
	// It is before the backup host at the same time, as it was.
	_, err := s.engine.Expose(ctx, set.ID, orchestrator.ExposeRequest{Initiators: []string{backup}})
	s.ok(err)
	set, err = s.engine.Expose(ctx, set.ID, orchestrator.ExposeRequest{Initiators: []string{production}, NewIdentity: true, Writable: true})
	s.ok(err)
	var disks []open.Source
	for _, l := range set.LUNs {
		if !l.NewIdentity {
			continue
		}
		d := s.login(driver.Path{Portals: l.Portals, IQN: l.IQN, LUN: l.LUN}, production, true)
		s.write(d, bytes.Repeat([]byte{0x5a}, 4096), d.Size()-200<<10) // free; it goes to an overlay
		disks = append(disks, open.Source{Name: l.Name, Device: luntest.ReadOnly(s.read(d))})
		s.ok(d.(io.Closer).Close())
	}
	if len(disks) != 2 {
		t.Fatalf("%d LUNs with a new identity, of 2 disks", len(disks))
	}
	s.same("under the LUNs", s.splits(set), before)
	was, err := open.Probe(ctx, open.Source{Device: luntest.ReadOnly(before[0])}, open.Source{Device: luntest.ReadOnly(before[1])})
	s.ok(err)
	is, err := open.Probe(ctx, disks...)
	s.ok(err)
	if len(is.Damage)+len(is.Groups) != 1 {
		t.Fatalf("%d groups, damage %v", len(is.Groups), is.Damage)
	}
	a, b := was.Groups[0], is.Groups[0]
	if a.Name == b.Name || a.UUID == b.UUID {
		t.Errorf("the group is %s, %s beside %s, %s", b.Name, b.UUID, a.Name, a.UUID)
	}
	for _, p := range b.PVs {
		for _, q := range a.PVs {
			if p.UUID == q.UUID {
				t.Errorf("PV %s is before production twice", p.UUID)
			}
		}
	}
	v, err := is.Volume(b.Name + "/str")
	s.ok(err)
	d, err := v.Open()
	s.ok(err)
	if got := sha256.Sum256(s.read(d)); hex.EncodeToString(got[:]) != s.sum {
		t.Errorf("%s/str is %x, want %s", b.Name, got, s.sum)
	}
	sees := func(iqn string) (luns []uint64) {
		ms, err := s.client.Masks(ctx)
		s.ok(err)
		for _, m := range ms {
			if m.Initiator == iqn && m.Kind != "volume" {
				luns = append(luns, m.LUN)
			}
		}
		return luns
	}
	for _, l := range set.LUNs {
		if l.IQN == "" {
			continue
		}
		if new := slices.Contains(sees(production), l.LUN); new != l.NewIdentity || slices.Contains(sees(backup), l.LUN) == new {
			t.Errorf("LUN %s (%d): production sees %v, backup %v", l.Name, l.LUN, sees(production), sees(backup))
		}
	}
	set, err = s.engine.Release(ctx, set.ID)
	if err != nil || set.State != orchestrator.StateReleased || len(sees(production))+len(sees(backup)) != 0 {
		t.Errorf("released: %s, %v; production sees %v, backup %v", set.State, err, sees(production), sees(backup))
	}
}
