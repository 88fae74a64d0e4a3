package dataplane

import (
	"os"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
)

// findings are those of an examination, by what was looked at.
func findings(t *testing.T, c *remote.Client, next ...driver.VolumeID) map[string]driver.Finding {
	t.Helper()
	x := arrays.New("lab", c, arrays.Options{}).Examine(t.Context(), next)
	if x.Err != nil {
		t.Fatal(x.Err)
	}
	out := map[string]driver.Finding{}
	for _, f := range x.Findings {
		out[f.Check] = f
	}
	return out
}

func expect(t *testing.T, fs map[string]driver.Finding, check string, r driver.Result, says string) {
	t.Helper()
	if f, ok := fs[check]; !ok || f.Result != r || !strings.Contains(f.Detail, says) {
		t.Errorf("%s: %+v, want %s with %q", check, f, r, says)
	}
}

// TestCheck follows a volume of two mirrors, and one of three, over a split, a
// mirror that breaks and a target that is gone.
func TestCheck(t *testing.T) {
	cfg := config(t)
	cfg.Portals = []Portal{{Addr: port(t)}}
	c, stop := run(t, cfg)
	two := volume(t, c, "two", 16<<20)
	three, err := c.CreateVolume(t.Context(), remote.CreateVolumeRequest{Name: "three", Size: 16 << 20, Pools: []string{"a", "b", "c"}})
	if err != nil {
		t.Fatal(err)
	}
	fs := findings(t, c)
	expect(t, fs, "portal "+cfg.Portals[0].Addr.String(), driver.OK, "accepts")
	expect(t, fs, "pool a", fs["pool a"].Result, "free of")
	expect(t, fs, "split of volume two", driver.Warning, "2 of 2 mirrors are in sync, 1 can be split off, 0 are off; the split leaves production with one")
	expect(t, fs, "split of volume three", driver.OK, "3 of 3 mirrors are in sync, 2 can be split off")
	expect(t, fs, "LUN numbers", driver.OK, "the next set needs 2")
	if _, there := findings(t, c, three.ID)["split of volume two"]; there {
		t.Error("a volume that the next set does not split is told")
	}
	if err := c.Prepare(t.Context(), []driver.VolumeID{two.ID}, driver.PrepareOptions{Tag: "t", AllowUnmirrored: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Split(t.Context(), "t", two.ID); err != nil {
		t.Fatal(err)
	}
	fs = findings(t, c, two.ID)
	expect(t, fs, "split of volume two", driver.Failed, "1 of 2 mirrors are in sync, 0 can be split off, 1 are off")
	if l := fs["split of volume two"].Limit; l == nil || l.Fits() {
		t.Errorf("its limit is %+v", l)
	}
	stop()
	v := three.Replicas[2]
	if err := os.Truncate(v.File, 4096); err != nil {
		t.Fatal(err)
	}
	c, _ = run(t, cfg)
	expect(t, findings(t, c, three.ID), "volume three", driver.Warning, "Broken")
}
