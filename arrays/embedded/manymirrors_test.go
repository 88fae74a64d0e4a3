package embedded

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
)

// A volume has as many mirrors as it may, and all but two of them are split off,
// one after the other. Each split is what the volume was then, after the next
// start and after a rescan of the pools too, and between any two of them is known
// what changed; and all go back.
func TestAsManyMirrorsAsMayBe(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	const unit = regionSize
	var pools []string
	for i := range maxMirrors {
		pools = append(pools, []string{"a", "b", "c"}[i%3])
	}
	_, err := a.CreateVolume(t.Context(), CreateVolume{Name: "db", Size: mib, Pools: append(pools, "a")})
	wantKind(t, err, driver.InvalidRequest)
	if raceEnabled { // in full without it
		pools = pools[:12]
	}
	n := len(pools)
	size := int64(n) * unit
	info, h := create(t, a, "db", size, pools...)
	if n == maxMirrors {
		_, err = a.AddMirror(t.Context(), info.ID, "a")
		wantKind(t, err, driver.InvalidRequest)
		if !strings.Contains(err.Error(), fmt.Sprint(n)) || !strings.Contains(err.Error(), "remove a mirror first") {
			t.Errorf("not clear: %v", err)
		}
	}
	var snaps []driver.Snapshot
	for i := range n - 2 {
		write(t, h, int64(i)*unit, 512, byte(i+1))
		snaps = append(snaps, split(t, a, driver.Tag(fmt.Sprintf("hour-%d", i)), info.ID))
	}
	now := write(t, h, 0, 512, 'n')
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	h.Close()
	check := func(a *Array, inSync int) {
		t.Helper()
		for i, s := range snaps {
			want := make([]byte, size)
			for j := range i + 1 {
				copy(want[j*unit:], bytes.Repeat([]byte{byte(j + 1)}, 512))
			}
			if got := snapContent(t, a, s.ID); !bytes.Equal(got, want) {
				t.Fatalf("split %d is not what the volume was", i)
			}
		}
		got := content(t, openVolume(t, a, info.ID))
		if !bytes.Equal(got[:512], now) || got[(len(snaps)-1)*unit] != byte(len(snaps)) {
			t.Fatal("the volume lost a write")
		}
		if vi, err := a.VolumeInfo(info.ID); err != nil || vi.Mirrors != inSync || vi.Wanted != n {
			t.Fatalf("%d mirrors of %d, %v", vi.Mirrors, vi.Wanted, err)
		}
	}
	check(a, 2)
	a.Close()
	a = open(t, o)
	check(a, 2)
	for _, c := range []struct{ from, to, want int }{{0, 1, 1}, {3, 9, 6}, {9, 3, 6}, {len(snaps) - 1, 0, len(snaps) - 1}} {
		r, err := a.Changes(t.Context(), info.ID, snaps[c.from].ID, snaps[c.to].ID)
		var total int64
		for _, x := range r.Regions {
			total += x.Len
		}
		if err != nil || total != int64(c.want)*unit {
			t.Errorf("from %d to %d: %d bytes changed, %v", c.from, c.to, total, err)
		}
	}
	a.Close()
	if err := os.RemoveAll(o.StateDir); err != nil {
		t.Fatal(err)
	}
	if rep, err := Rescan(t.Context(), o, false); err != nil || !rep.Written {
		t.Fatalf("%+v, %v", rep, err)
	}
	a = open(t, o)
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	check(a, 2)
	for _, s := range snaps {
		if err := a.Resync(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	snaps = snaps[:0]
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all mirrors are in sync", func() bool {
		vi, _ := a.VolumeInfo(info.ID)
		return vi.Mirrors == n
	})
	sameMirrors(t, a, info.ID)
	if vi, _ := a.VolumeInfo(info.ID); vi.Wanted != n {
		t.Fatalf("%d wanted", vi.Wanted)
	}
}
