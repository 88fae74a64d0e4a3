package worker

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
)

// cleanSum is what the guest's kernel read from vgo1/snap (lun/testdata).
const cleanSum = "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f"

func TestVolumesThroughAWorker(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	dev := image(t, "lvm-o1-thick-4k")
	for _, names := range [][]string{{AllVolumes}, {"vgo1/snap"}, {"disk", "8RfV23-8Il5-oMwk-DYpQ-ieLK-Y8TD-BfAKuq"}} {
		c, err := Open(t.Context(), spec(t, Source{Name: "disk", Device: dev}), names...)
		if err != nil {
			t.Fatal(err)
		}
		confined(t, c.p.cmd.Process.Pid)
		if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
			t.Errorf("on the disk while it is open: %v, %v", left, err)
		}
		v := c.Volumes[len(c.Volumes)-1]
		if v.Name != "vgo1/snap" || len(c.Names) != 3 {
			t.Errorf("%q: %+v", names, c)
		}
		for range 2 { // a volume can be opened again
			d, err := v.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := sum(t, d); hex.EncodeToString(got[:]) != cleanSum {
				t.Errorf("%q: content of the snapshot: %x", names, got)
			}
			if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, lun.ErrReadOnly) {
				t.Errorf("write: %v", err)
			}
			d.Close()
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := v.Open(t.Context()); err == nil {
			t.Error("opened after Close")
		}
	}
	if _, err := Open(t.Context(), spec(t, Source{Name: "disk", Device: dev}), "vgo1/none"); !errors.Is(err, open.ErrNotFound) {
		t.Errorf("a volume that is not there: %v", err)
	}
	if _, err := Open(t.Context(), spec(t, Source{Name: "disk", Device: dev})); err == nil {
		t.Error("no volume named, and no error")
	}
}

// TestVolumesSayWhatIsWrong: a snapshot that can't be read does not hide the
// others, and damage keeps its place.
func TestVolumesSayWhatIsWrong(t *testing.T) {
	a, b := image(t, "lvm-o4-a"), image(t, "lvm-o4-b")
	c, err := Open(t.Context(), spec(t, Source{Name: "a", Device: a}, Source{Name: "b", Device: b}), "vgo4/tiny", "vgo4/good")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var fe *lun.FormatError
	if err := c.Volumes[0].Err; !errors.As(err, &fe) || fe.Format != "dm-snapshot" || fe.Offset != 4 {
		t.Errorf("overflowed snapshot: %v", err)
	}
	if _, err := c.Volumes[0].Open(t.Context()); err == nil {
		t.Error("an overflowed snapshot was opened")
	}
	if c.Volumes[1].Err != nil {
		t.Error(c.Volumes[1].Err)
	}

	path := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 8<<10)
	if _, err := image(t, "lvm-o1-thick-4k").ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(head, 0)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	cut, err := open.File(path)
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	d, err := Open(t.Context(), spec(t, Source{Name: "cut", Device: cut}), AllVolumes)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if len(d.Damage) != 1 || !errors.As(d.Damage[0], &fe) || fe.Format != "lvm2" {
		t.Errorf("damage: %v", d.Damage)
	}
}
