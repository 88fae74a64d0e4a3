package btrfs

import (
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// FS is an opened file system. It never changes and may be used by several
// goroutines.
type FS struct {
	dev    lun.Device
	super  super
	chunks []chunk // by logical address
	cache  cache
	// Warning is what was wrong with the first superblock, where another one is
	// used in its place.
	Warning error
}

// Open reads the superblock and the chunk tree of dev, which is the device from its
// first sector. lun.ErrNotFormat: there is no Btrfs.
func Open(dev lun.Device) (*FS, error) {
	s, old, err := readSuper(dev)
	if err != nil {
		return nil, err
	}
	if err := s.supported(dev); err != nil {
		return nil, err
	}
	f := &FS{dev: dev, super: s}
	if old != nil {
		f.Warning = fmt.Errorf("the superblock at byte %d is used: %w", s.bytenr(), old)
	}
	for b := s.chunks()[:s.chunkArray()]; len(b) > 0; {
		if len(b) < KeySize {
			return nil, damaged(-1, "sys_chunk_array", nil, "ends within an entry")
		}
		k := ParseKey(b)
		if k.Type != chunkItem {
			return nil, damaged(-1, "sys_chunk_array", k.String(), "is no chunk's key")
		}
		n, err := f.addChunk(k.Offset, b[KeySize:])
		if err != nil {
			return nil, err
		}
		b = b[KeySize+n:]
	}
	t := &Tree{f, pointer{s.chunkRoot(), s.chunkGen(), s.chunkLevel(), nil}}
	if s.chunkLevel() >= maxLevel || s.level() >= maxLevel || s.logLevel() >= maxLevel {
		return nil, damaged(-1, "level", max(s.chunkLevel(), s.level(), s.logLevel()), "trees are not that high")
	}
	// The chunks of the tree are taken when it has been read: a walk looks into
	// the map.
	type found struct {
		logical uint64
		item    []byte
	}
	var all []found
	err = t.Walk(Key{}, func(k Key, b []byte) (bool, error) {
		if k.Type != chunkItem {
			return true, nil
		}
		if len(all) == maxChunks {
			return false, damaged(-1, "chunks", maxChunks, "there are too many")
		}
		all = append(all, found{k.Offset, append([]byte{}, b[:min(len(b), chunkSize+2*stripeSize)]...)})
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("chunk tree: %w", err)
	}
	for _, c := range all {
		if _, err := f.addChunk(c.logical, c.item); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// UUID is the file system's, as blkid prints it.
func (f *FS) UUID() string { return uuid(f.super.fsid()) }

// Label is the file system's name.
func (f *FS) Label() string { return f.super.label() }

// Size is what the file system takes of the device, in bytes.
func (f *FS) Size() int64 { return int64(f.super.total()) }

// SectorSize is the unit of data extents, in bytes.
func (f *FS) SectorSize() int { return int(f.super.sectorSize()) }

// Generation is that of the last transaction.
func (f *FS) Generation() uint64 { return f.super.generation() }

// Checksum names the kind of checksums.
func (f *FS) Checksum() string {
	return [...]string{"crc32c", "xxhash64", "sha256"}[f.super.sum()]
}

// ReadData reads bytes at a logical address, from the first copy. Checksums of data
// are not looked at.
func (f *FS) ReadData(p []byte, logical uint64) error {
	for len(p) > 0 {
		at, run, err := f.Locate(logical, int64(len(p)))
		if err != nil {
			return err
		}
		if err := f.read(p[:run], at); err != nil {
			return err
		}
		p, logical = p[run:], logical+uint64(run)
	}
	return nil
}

func (f *FS) rootTree() *Tree {
	return &Tree{f, pointer{f.super.root(), f.super.generation(), f.super.level(), nil}}
}

// Logged lists the subvolumes that have a log tree: changes that were made stable by
// fsync since the last transaction, and that a mount replays.
func (f *FS) Logged() (map[uint64]bool, error) {
	out := make(map[uint64]bool)
	if f.super.logRoot() == 0 {
		return out, nil
	}
	// The log's root was written in the transaction after the superblock's.
	t := &Tree{f, pointer{f.super.logRoot(), f.super.generation() + 1, f.super.logLevel(), nil}}
	err := t.Walk(Key{}, func(k Key, _ []byte) (bool, error) {
		if k.Type == RootItem && len(out) < maxSubvolumes {
			out[k.Offset] = true
		}
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("log tree: %w", err)
	}
	return out, nil
}

func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
