package worker

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

// TestRewritten: every unit in which a view differs from its disk is told, also
// what was written to the view, and what is not told is as on the disk.
func TestRewritten(t *testing.T) {
	dev := image(t, "lvm-o1-thick-4k")
	s := spec(t, Source{Name: "disk", Device: dev})
	s.Socket = filepath.Join(t.TempDir(), "view")
	w, err := Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	view, err := nbd.Dial(t.Context(), "unix", w.Address(), nbd.ClientOptions{Export: w.Exports[0].Name})
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	told := func() (total int64, list []lun.Extent) {
		list, err := Rewritten(t.Context(), w.Address(), w.Exports[0].Name, dev.Size())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			total += e.Len
		}
		covers(t, dev, view, list)
		return total, list
	}
	before, _ := told()
	if before == 0 || before > dev.Size()/2 {
		t.Errorf("%d of %d bytes are told to be rewritten", before, dev.Size())
	}
	at := dev.Size() - 4096 // nothing of a volume is there
	if _, err := view.WriteAt(bytes.Repeat([]byte{0xa5}, 4096), at); err != nil {
		t.Fatal(err)
	}
	after, list := told()
	if last := list[len(list)-1]; after <= before || last.Off+last.Len != dev.Size() {
		t.Errorf("after a write at %d: %d bytes are told, before %d", at, after, before)
	}
	if _, err := Rewritten(t.Context(), w.Address(), w.Exports[0].Name, 1<<50); err == nil {
		t.Error("a map of another size was taken")
	}
	if _, err := Rewritten(t.Context(), w.Address(), "7", dev.Size()); err == nil {
		t.Error("what a view that is not there rewrote is known")
	}
}

// covers wants all that differs between two devices to be in the list.
func covers(t *testing.T, a, b lun.Device, list []lun.Extent) {
	t.Helper()
	const unit = 64 << 10
	x, y := make([]byte, unit), make([]byte, unit)
	for off := int64(0); off < a.Size(); off += unit {
		n := min(unit, a.Size()-off)
		if _, err := a.ReadAt(x[:n], off); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ReadAt(y[:n], off); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(x[:n], y[:n]) {
			continue
		}
		in := false
		for _, e := range list {
			in = in || e.Off <= off && off+n <= e.Off+e.Len
		}
		if !in {
			t.Errorf("byte %d differs and is not told", off)
		}
	}
}
