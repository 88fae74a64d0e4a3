package embedded

import (
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
)

// A consent is for one split: it is forgotten with it, and what the tag was
// consented to for other volumes is not.
func TestConsentIsUsedOnce(t *testing.T) {
	a := open(t, options(testDir(t)))
	var ids []driver.VolumeID
	for _, name := range []string{"v0", "v1"} {
		v, err := a.CreateVolume(t.Context(), CreateVolume{Name: name, Size: 1 << 20, Pools: []string{"a", "b"}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, v.ID)
	}
	prepare(t, a, "t", ids...)
	s := split(t, a, "t", ids[0])
	if c := a.store.read(); len(c.Consents) != 1 || len(c.Consents[0].Volumes) != 1 {
		t.Errorf("after the first split there is %+v", c.Consents)
	}
	split(t, a, "t", ids[1])
	if c := a.store.read(); len(c.Consents) != 0 {
		t.Errorf("after the second split there is %+v", c.Consents)
	}
	if err := a.Resync(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.WaitInSync(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	_, err := a.Split(t.Context(), "t", ids[0])
	wantKind(t, err, driver.NeedsConsent)
}
