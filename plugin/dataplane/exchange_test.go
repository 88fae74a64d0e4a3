package dataplane

import (
	"io"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
)

// A split of a volume that initiators have can't be exchanged with it; once
// nobody has it, it goes there and back, and the mirrors can be repaired.
func TestReverseAndRepairOverTheSocket(t *testing.T) {
	need(t, "qemu-io")
	c, _ := run(t, config(t))
	v := volume(t, c, "db", 8<<20)
	p, err := c.ExposeVolume(t.Context(), v.ID, []string{alice}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := qemuIO(t, disk(p, alice), nil, "write -P 1 0 64k"); err != nil {
		t.Fatal(err)
	}
	tag := driver.Tag("before")
	if err := c.Prepare(t.Context(), []driver.VolumeID{v.ID}, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}); err != nil {
		t.Fatal(err)
	}
	s, err := c.Split(t.Context(), tag, v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := qemuIO(t, disk(p, alice), nil, "write -P 2 0 64k"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"Reverse": second(c.Reverse(t.Context(), s.ID)), "Revert": second(c.Revert(t.Context(), s.ID))} {
		if kindOf(err) != driver.Busy || !strings.Contains(err.Error(), "in use") {
			t.Errorf("%s of an exposed volume: %v", what, err)
		}
	}
	if err := c.UnexposeVolume(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}

	other, err := c.Reverse(t.Context(), s.ID)
	if err != nil || other.ID == s.ID || other.Tag != tag || other.Volume != v.ID {
		t.Fatalf("%+v, %v", other, err)
	}
	if got := firstByte(t, c, other.ID); got != 2 {
		t.Errorf("the split holds %d, not what the volume held", got)
	}
	if again, err := c.Reverse(t.Context(), s.ID); err != nil || again.ID != other.ID {
		t.Errorf("again: %+v, %v", again, err)
	}
	back, err := c.Reverse(t.Context(), other.ID)
	if err != nil || back.ID == other.ID {
		t.Fatalf("%+v, %v", back, err)
	}
	if got := firstByte(t, c, back.ID); got != 1 {
		t.Errorf("the split holds %d after it was exchanged back", got)
	}
	if err := c.Delete(t.Context(), back.ID); err != nil {
		t.Fatal(err)
	}

	info, err := c.RepairVolume(t.Context(), "db")
	if err != nil || len(info.Replicas) != 2 {
		t.Fatalf("%+v, %v", info, err)
	}
	if err := c.WaitInSync(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if info, err = c.Volume(t.Context(), v.ID); err != nil || info.Mirrors != 2 || !info.UnmirroredSince.IsZero() {
		t.Errorf("%+v, %v", info, err)
	}
	for what, err := range map[string]error{"Reverse": second(c.Reverse(t.Context(), "nope")), "RepairVolume": second(c.RepairVolume(t.Context(), "nope"))} {
		if kindOf(err) != driver.NotFound {
			t.Errorf("%s of nothing: %v", what, err)
		}
	}
}

func firstByte(t *testing.T, c *remote.Client, s driver.SnapshotID) byte {
	t.Helper()
	d, err := c.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, rerr := d.ReadAt(b, 0)
	if err := d.(io.Closer).Close(); err != nil || rerr != nil {
		t.Fatal(rerr, err)
	}
	return b[0]
}
