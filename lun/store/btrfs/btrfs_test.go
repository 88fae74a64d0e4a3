package btrfs_test

import (
	"testing"

	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/btrfs"
)

func TestOpen(t *testing.T) {
	f, err := btrfs.Open(luntest.Image(t, "btrfs-open1"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.Subvolumes()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range s {
		t.Logf("%+v", s)
	}
	t.Log(f.UUID(), f.Generation(), f.Checksum())
	t.Log(f.Logged())
}
