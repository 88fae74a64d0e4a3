package worker

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/open"
)

// TestFilesThroughAWorker reads the file systems of a volume and of its snapshot.
func TestFilesThroughAWorker(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	src := Source{Name: "disk", Device: image(t, "lvm-o1-thick-4k")}
	names := make(map[string]string)
	for _, volume := range []string{"vgo1/root", "vgo1/snap"} {
		f, err := OpenFiles(t.Context(), spec(t, src), volume)
		if err != nil {
			t.Fatal(err)
		}
		confined(t, f.p.cmd.Process.Pid)
		if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
			t.Errorf("on the disk while it is open: %v, %v", left, err)
		}
		if f.Info().Kind != "ext4" || f.Volume != volume || len(f.Names) != 3 {
			t.Errorf("%+v, %q of %q", f.Info(), f.Volume, f.Names)
		}
		err = fs.Walk(f, f.Root(), func(v fs.Visit) error {
			if v.Err != nil {
				return v.Err
			}
			names[volume] += v.Path + "\n"
			if v.Stat.Type != fs.Regular {
				return nil
			}
			o, err := f.Open(v.Stat.Ref)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, io.NewSectionReader(o, 0, o.Size()))
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", volume, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, err := f.Stat(f.Root()); !errors.Is(err, lun.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	if names["vgo1/root"] == names["vgo1/snap"] || !strings.Contains(names["vgo1/snap"], "lost+found") {
		t.Errorf("the volume has\n%s\nthe snapshot\n%s", names["vgo1/root"], names["vgo1/snap"])
	}
	if _, err := OpenFiles(t.Context(), spec(t, src), "disk"); !errors.Is(err, open.ErrNoFileSystem) {
		t.Errorf("a disk without a file system: %v", err)
	}
	if _, err := OpenFiles(t.Context(), spec(t, src), "vgo1/none"); !errors.Is(err, open.ErrNotFound) {
		t.Errorf("a volume that is not there: %v", err)
	}
}
