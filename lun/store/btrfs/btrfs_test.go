package btrfs_test

import (
	"errors"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/btrfs"
)

// TestSubvolumes compares with what `btrfs inspect-internal dump-tree` says of the
// image.
func TestSubvolumes(t *testing.T) {
	f, err := btrfs.Open(luntest.Image(t, "btrfs-open1"))
	if err != nil {
		t.Fatal(err)
	}
	if f.UUID() != "9083a988-27b1-496d-8575-0d56d9acfc39" || f.Generation() != 13 || f.Checksum() != "crc32c" || f.Size() != 128<<20 || f.Warning != nil {
		t.Errorf("%s of generation %d, %s, %d bytes, %v", f.UUID(), f.Generation(), f.Checksum(), f.Size(), f.Warning)
	}
	list, err := f.Subvolumes()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		id, parent, generation uint64
		path, uuid             string
		readOnly, standard     bool
	}{
		{5, 0, 10, "", "4610f3d3-12dd-4d23-9ce8-4e3ae3a96a5f", false, true},
		{256, 5, 13, "@", "38b54890-8d40-e544-bdc3-daf6713b248e", false, false},
		{257, 5, 10, "@snap", "a0d767db-b378-6b4b-b114-33ff07493a16", true, false},
	} {
		if i >= len(list) {
			t.Fatalf("only %d subvolumes", len(list))
		}
		s := list[i]
		if s.ID != want.id || s.Parent != want.parent || s.Generation != want.generation || s.Path != want.path || s.UUID != want.uuid ||
			s.ReadOnly != want.readOnly || s.Default != want.standard || s.Snapshot() != want.readOnly || s.Err != nil || s.Created.IsZero() {
			t.Errorf("%+v, want %+v", s, want)
		}
	}
	if btrfs.OriginOf(list[2], list) != list[1] || btrfs.OriginOf(list[1], list) != nil {
		t.Error("the snapshot is of another subvolume")
	}
	if logged, err := f.Logged(); err != nil || len(logged) != 0 {
		t.Errorf("log trees %v, %v", logged, err)
	}
	if _, err := btrfs.Open(luntest.ReadOnly(make([]byte, 1<<20))); !errors.Is(err, lun.ErrNotFormat) {
		t.Errorf("of zeroes: %v", err)
	}
}
