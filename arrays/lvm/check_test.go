package lvm

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
)

// theGroup is what vgs says of the group of the recorded reports.
const theGroup = `{"report": [{"vg": [{"vg_size":"3213885440", "vg_permissions":"writeable", "vg_exported":"", "vg_partial":"", "vg_lock_type":""}]}]}`

func checked(t *testing.T, d *Driver, next ...driver.VolumeID) map[string]driver.Finding {
	t.Helper()
	d.anybody = true
	fs, err := d.Check(t.Context(), next)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]driver.Finding{}
	for _, f := range fs {
		out[f.Check] = f
		if f.Result == driver.Failed && f.Try == "" {
			t.Errorf("%s: nothing is said about what to do: %+v", f.Check, f)
		}
	}
	return out
}

func expect(t *testing.T, fs map[string]driver.Finding, check string, r driver.Result, says string) {
	t.Helper()
	if f, ok := fs[check]; !ok || f.Result != r || !strings.Contains(f.Detail, says) {
		t.Errorf("%s: %s %q, want %s with %q; there are %v", check, f.Result, f.Detail, r, says, fs)
	}
}

func TestCheckOfMirrors(t *testing.T) {
	d, p := newPlayed(t, TrackedSplit, recorded(t, "fresh"))
	p.vg = theGroup
	fs := checked(t, d)
	expect(t, fs, "run lvm2", driver.OK, "as root")
	expect(t, fs, "volume group vg0", driver.OK, "found")
	expect(t, fs, "room in group vg0", driver.OK, "2.8 GiB left, the next set needs 0 B")
	expect(t, fs, "split of volume vg0/plain", driver.Warning, "no raid1 volume")
	expect(t, checked(t, d, plainUUID), "split of volume vg0/plain", driver.Failed, "no raid1 volume")
	expect(t, fs, "split of volume vg0/mirror", driver.Warning, "2 of 2 images are there")
	expect(t, fs, "split of volume vg0/three", driver.OK, "3 of 3 images are there")
	fs = checked(t, d, mirrorUUID, "nothing-such")
	expect(t, fs, "split of volume nothing-such", driver.Failed, "no volume")
	if _, there := fs["split of volume vg0/three"]; there {
		t.Error("a volume that the set does not split is told of")
	}
	if len(p.ran) > 0 {
		t.Errorf("a check runs %q", p.ran)
	}

	d, p = newPlayed(t, TrackedSplit, recorded(t, "tracked", "cleave.at=1700000000000,cleave.tag=set-1", splitTags))
	p.vg = theGroup
	fs = checked(t, d, mirrorUUID)
	expect(t, fs, "split of volume vg0/mirror", driver.Failed, "is split off vg0/mirror already")
}

func TestCheckOfSnapshots(t *testing.T) {
	d, p := newPlayed(t, Snapshots, recorded(t, "fresh"))
	p.vg = theGroup
	fs := checked(t, d, plainUUID, mirrorUUID, thinUUID)
	expect(t, fs, "split of volume vg0/plain", driver.OK, "room for 20% of changes: 3.2 MiB")
	expect(t, fs, "room in group vg0", driver.OK, "the next set needs 6.4 MiB")
	expect(t, fs, "split of volume vg0/thin", driver.OK, "in vg0/pool")
	expect(t, fs, "data of thin pool vg0/pool", driver.OK, "0.0% used")
	expect(t, fs, "metadata of thin pool vg0/pool", driver.OK, "11.9% used")

	d, p = newPlayed(t, Snapshots, recorded(t, "fresh", `"vg_free":"3040870400"`, `"vg_free":"4194304"`, `"metadata_percent":"11.91"`, `"metadata_percent":"96.5"`))
	p.vg = theGroup
	fs = checked(t, d, plainUUID, mirrorUUID, thinUUID)
	expect(t, fs, "room in group vg0", driver.Failed, "4 MiB left, the next set needs 6.4 MiB")
	expect(t, fs, "metadata of thin pool vg0/pool", driver.Failed, "96.5% used; at 95% no snapshot is made")
	if f := checked(t, d)["room in group vg0"]; f.Result == driver.Failed {
		t.Errorf("one volume by itself fits: %+v", f)
	}
}

func TestCheckOfNewImages(t *testing.T) {
	d, p := newPlayed(t, FullSplit, recorded(t, "split", "cleave.x=y", "", "cleave.tag=set-2", "cleave.mirrors=2"))
	p.vg = theGroup
	fs := checked(t, d, mirrorUUID)
	expect(t, fs, "split of volume vg0/mirror", driver.Warning, "the next set first copies a new one of 16 MiB")
	expect(t, fs, "room in group vg0", driver.OK, "the next set needs 16 MiB")
}

func TestCheckOfGroups(t *testing.T) {
	for name, x := range map[string]struct {
		replace [2]string
		result  driver.Result
		says    string
	}{
		"missing PVs": {[2]string{`"vg_partial":""`, `"vg_partial":"partial"`}, driver.Failed, "physical volumes of it are missing"},
		"exported":    {[2]string{`"vg_exported":""`, `"vg_exported":"exported"`}, driver.Failed, "exported"},
		"read-only":   {[2]string{`"writeable"`, `"read-only"`}, driver.Failed, "read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			d, p := newPlayed(t, Snapshots, recorded(t, "fresh"))
			p.vg = strings.ReplaceAll(theGroup, x.replace[0], x.replace[1])
			expect(t, checked(t, d), "volume group vg0", x.result, x.says)
		})
	}
	d, p := newPlayed(t, Snapshots, recorded(t, "fresh"))
	p.fail["vgs"] = &commandError{"vgs", 5, `Volume group "vg0" not found`}
	expect(t, checked(t, d), "volume group vg0", driver.Failed, "not found")
	d, p = newPlayed(t, Snapshots, recorded(t, "fresh", `"vg_lock_type":""`, `"vg_lock_type":"sanlock"`))
	p.vg = strings.ReplaceAll(theGroup, `"vg_lock_type":""`, `"vg_lock_type":"sanlock"`)
	expect(t, checked(t, d), "volume group vg0", driver.Warning, "shared (sanlock)")
	d.run = func(context.Context, ...string) ([]byte, error) {
		return nil, &killedError{"vgs", context.DeadlineExceeded, false}
	}
	if _, err := d.Check(t.Context(), nil); d.Kind(err) != driver.Unreachable || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that hangs: %v", err)
	}
}
