package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

const (
	snapshotHeader  = 40
	maxSnapshots    = 65536   // QEMU's bound
	maxSnapshotText = 1023    // of an ID or a name
	maxSnapshotList = 1 << 20 // bytes of the table that are read
)

// snapshot is one entry of the snapshot table.
type snapshot struct {
	vdisk.Snapshot
	at     int64 // of the entry
	l1Off  uint64
	l1Size uint32
}

// readSnapshots reads the snapshot table as far as it makes sense; an error
// goes with the entries before it.
func (d *disk) readSnapshots() ([]snapshot, error) {
	n := d.h.snapshots
	if n > maxSnapshots {
		return nil, damaged(60, "nb_snapshots", n, "is more than %d", maxSnapshots)
	}
	if n > 0 && (d.h.snapshotsOff <= 0 || d.h.snapshotsOff&(d.h.cluster()-1) != 0) {
		return nil, damaged(64, "snapshots_offset", d.h.snapshotsOff, "is not at the start of a cluster of %d bytes", d.h.cluster())
	}
	var out []snapshot
	at := d.h.snapshotsOff
	for range n {
		s, size, err := d.readSnapshot(at)
		if err != nil {
			return out, err
		}
		out = append(out, s)
		at += (size + 7) &^ 7
		if d.snapshotBytes = at - d.h.snapshotsOff; d.snapshotBytes > maxSnapshotList {
			return out, damaged(64, "snapshot table", nil, "is longer than %d bytes", maxSnapshotList)
		}
	}
	return out, nil
}

// readSnapshot reads the entry at at and returns its size, too.
func (d *disk) readSnapshot(at int64) (snapshot, int64, error) {
	be := binary.BigEndian
	b := make([]byte, snapshotHeader)
	if err := d.readTable(b, at, "snapshot table entry"); err != nil {
		return snapshot{}, 0, err
	}
	s := snapshot{at: at, l1Off: be.Uint64(b), l1Size: be.Uint32(b[8:])}
	idLen, nameLen, extra := int(be.Uint16(b[12:])), int(be.Uint16(b[14:])), int64(be.Uint32(b[36:]))
	s.Unix, s.Size = int64(be.Uint32(b[16:])), d.h.size
	if idLen > maxSnapshotText || nameLen > maxSnapshotText {
		return s, 0, damaged(at+12, "snapshot ID or name length", max(idLen, nameLen), "is more than %d", maxSnapshotText)
	}
	if extra > 4096 {
		return s, 0, damaged(at+36, "snapshot extra data size", extra, "is more than 4096")
	}
	if extra >= 16 {
		if err := d.readTable(b[:8], at+snapshotHeader+8, "snapshot disk size"); err != nil {
			return s, 0, err
		}
		size := be.Uint64(b)
		if size > 1<<62 {
			return s, 0, damaged(at+snapshotHeader+8, "snapshot disk size", size, "is impossible")
		}
		s.Size = int64(size)
	}
	text := make([]byte, idLen+nameLen)
	if err := d.readTable(text, at+snapshotHeader+extra, "snapshot name"); err != nil {
		return s, 0, err
	}
	s.ID, s.Name = string(text[:idLen]), string(text[idLen:])
	return s, snapshotHeader + extra + int64(len(text)), nil
}

func (d *disk) readTable(p []byte, at int64, field string) error {
	_, err := d.tables.ReadAt(p, at)
	if errors.Is(err, lun.ErrOutOfRange) {
		return damaged(at, field, nil, "lies beyond the file of %d bytes", d.dev.Size())
	}
	return err
}

// choose makes the disk that of an internal snapshot.
func (d *disk) choose(list []snapshot, name string) error {
	var named, numbered []*snapshot
	for i := range list {
		s := &list[i]
		if s.Name == name {
			named = append(named, s)
		}
		if s.ID == name {
			numbered = append(numbered, s)
		}
	}
	found := named
	if len(found) == 0 {
		found = numbered
	}
	if len(found) != 1 {
		return fmt.Errorf("%w as %.80q: %d of the disk's %d are called so", vdisk.ErrNoSnapshot, name, len(found), len(list))
	}
	s := found[0]
	l1, err := d.h.table(s.at, s.l1Off, s.at+8, s.l1Size, s.Size, d.dev.Size())
	if err != nil {
		return fmt.Errorf("internal snapshot %.80q: %w", name, err)
	}
	d.l1, d.size = l1, s.Size
	return nil
}
