package open_test

import (
	"errors"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/open"
)

// TestPlacesOnNTFS: disks that are files on a volume of a Windows host are found
// and read, and not written.
func TestPlacesOnNTFS(t *testing.T) {
	image := fstest.Image(t, t.TempDir(), 256<<20, "mkntfs", "-F", "-Q", "-q")
	dir, unmount := fstest.NTFS3G(t, image, "noatime")
	folderOfDisks(t, dir)
	unmount()
	for file, format := range map[string]string{"raw.img": "raw", "disk.vhdx": "vhdx", "disk.vpc": "vhd"} {
		c, err := place(t, fstest.Device(t, image), open.Place{Path: "vms/" + file, Format: format})
		if err != nil {
			t.Fatal(err)
		}
		if got := names(c); got != "disk vgo1/root vgo1/snap" || len(c.Damage) > 0 {
			t.Errorf("%s: %q, damage %v", file, got, c.Damage)
		}
		if _, err := c.Disks[0].Device.WriteAt(make([]byte, 512), 0); !errors.Is(err, lun.ErrReadOnly) {
			t.Errorf("%s: written: %v", file, err)
		}
	}
}
