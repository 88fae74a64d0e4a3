package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/luntest"
)

// An ordinary user brings a snapshot of an image of their own back: to a file, the
// whole disk to a file, and in place.
func TestRecoverAsAnOrdinaryUser(t *testing.T) {
	const (
		image = "lvm-o1-thick-4k"
		want  = "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f  41943040  vgo1/root\n"
	)
	dir := t.TempDir()
	disk, volume, whole := filepath.Join(dir, "disk.img"), filepath.Join(dir, "volume.img"), filepath.Join(dir, "whole.img")
	if err := luntest.Unpack(image, disk); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // to be reached by others
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		for _, path := range []string{dir, disk} {
			if err := os.Chown(path, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := fileSum(t, disk)
	asNobody(t, "lun", "recover", disk, "--volume", "vgo1/snap", "--to", volume)
	if got, _, _ := strings.Cut(want, " "); fileSum(t, volume) != got {
		t.Errorf("the volume, to a file: %s, want %s", fileSum(t, volume), got)
	}
	asNobody(t, "lun", "recover", disk, "--to", whole)
	if fileSum(t, disk) != before {
		t.Fatal("a recovery to a file has changed the disk")
	}
	asNobody(t, "lun", "recover", disk, "--in-place")
	for _, path := range []string{whole, disk} {
		if got := asNobody(t, "lun", "sha256", path, "--volume", "vgo1/root"); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
