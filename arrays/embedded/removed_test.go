package embedded

import (
	"bytes"
	"slices"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
)

// After a crash reads come from one mirror until the others are equal to it.
// What was read must not be lost by removing that one meanwhile.
func TestMirrorComparedWithStays(t *testing.T) {
	fs := disktest.New()
	a, err := Open(t.Context(), pcOptions(fs))
	if err != nil {
		t.Fatal(err)
	}
	info, err := a.CreateVolume(t.Context(), CreateVolume{Name: "db", Size: 1 << 20, Pools: pcPools})
	if err != nil {
		t.Fatal(err)
	}
	h, err := a.OpenVolume(info.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	const last = 3 * pcUnit
	want := bytes.Repeat([]byte("new "), sector/4)
	for off := int64(0); off <= last; off += pcUnit { // the first is compared before the rate limits it
		if _, err := h.WriteAt(want, off); err != nil {
			t.Fatal(err)
		}
	}
	files := func(fs *disktest.FS) (differ bool) {
		var first []byte
		for i, m := range info.Replicas {
			c := pcChecker{fs: fs}
			b, err := c.raw(m.File)
			if err != nil {
				t.Fatal(err)
			}
			b = b[last : last+sector]
			if i == 0 {
				first = b
			} else if bytes.Equal(first, want) && !bytes.Equal(b, first) {
				differ = true
			}
		}
		return differ
	}
	seed := uint64(0)
	for !files(fs.Cut(seed)) {
		seed++
	}
	cut := fs.Cut(seed)
	h.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	o := pcOptions(cut)
	o.ResyncRate = 1
	if a, err = Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	got := func() []byte {
		h, err := a.OpenVolume(info.ID, "test")
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		b := make([]byte, sector)
		if _, err := h.ReadAt(b, last); err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(got(), want) {
		t.Fatal("the first mirror was not read")
	}
	if err := a.RemoveMirror(t.Context(), info.ID, info.Replicas[0].ID); kindOf(err) != driver.NotSynchronized {
		t.Errorf("removing the mirror that was read: %v, want it refused", err)
	}
	if !bytes.Equal(got(), want) {
		t.Error("what was read is not there any more")
	}
	a.SetResyncRate(0)
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.RemoveMirror(t.Context(), info.ID, info.Replicas[0].ID); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got(), want) {
		t.Error("what was read is on no other mirror")
	}
	after, err := a.VolumeInfo(info.ID)
	if err != nil || slices.ContainsFunc(after.Replicas, func(m MirrorInfo) bool { return m.ID == info.Replicas[0].ID }) {
		t.Errorf("the mirror is still there: %v", err)
	}
}
