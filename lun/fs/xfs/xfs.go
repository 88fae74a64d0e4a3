package xfs

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/cached"
)

// cacheSize bounds the metadata that is kept, in bytes.
const cacheSize = 16 << 20

// FS is an XFS file system.
type FS struct {
	s    *super
	dev  lun.Device
	meta *cached.Reader
	view *view // dev, if the log was recovered
	// replayed says what of the log was.
	replayed string
	// unsummed leaves checksums out, for tests that change what is below them.
	unsummed bool
}

var _ fs.FS = (*FS)(nil)

// Open opens the file system that dev holds from its first byte on. The error is
// lun.ErrNotFormat where there is none, fs.ErrDirty where its log is not clean,
// and a *lun.FormatError where it is damaged or uses what isn't read.
func Open(dev lun.Device) (*FS, error) { return open(dev, false) }

func open(dev lun.Device, unsummed bool) (*FS, error) {
	f, err := openSuper(dev, nil, unsummed)
	if err != nil {
		return nil, err
	}
	if err := f.logClean(); err != nil {
		if !errors.Is(err, fs.ErrDirty) || f.s.logStart == 0 {
			return nil, err
		}
		if f, err = f.recovered(); err != nil {
			return nil, err
		}
	}
	root, err := f.inode(f.s.root)
	if err != nil {
		return nil, fmt.Errorf("xfs root: %w", err)
	}
	if root.kind() != fs.Directory {
		return nil, damaged(-1, "di_mode", root.mode, "the root is not a directory")
	}
	return f, nil
}

// openSuper reads the superblock of a device, or of a view of it.
func openSuper(dev lun.Device, v *view, unsummed bool) (*FS, error) {
	if dev.Size() < superSize {
		return nil, lun.ErrNotFormat
	}
	f := &FS{dev: dev, meta: cached.New(dev, dev.Size(), cacheSize), view: v, unsummed: unsummed}
	b := make([]byte, superSize)
	if _, err := f.meta.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("xfs superblock: %w", err)
	}
	var err error
	if f.s, err = parseSuper(b, dev.Size()); err != nil {
		return nil, err
	}
	if f.s.v5 {
		b := make([]byte, f.s.sector)
		if _, err := f.meta.ReadAt(b, 0); err != nil {
			return nil, fmt.Errorf("xfs superblock: %w", err)
		}
		if sum := le.Uint32(b[224:]); !unsummed && !v.touched(0, f.s.sector) && checksum(b, 224) != sum {
			return nil, damaged(224, "sb_crc", sum, "the superblock's checksum is wrong: xfs_repair on a copy may find a backup of it")
		}
	}
	return f, nil
}

// Info implements fs.FS.
func (f *FS) Info() fs.Info {
	s, variant := f.s, "v4"
	if s.v5 {
		variant = "v5"
	}
	return fs.Info{Kind: "xfs", Replayed: f.replayed, Variant: variant, Label: s.label, UUID: s.uuid, Size: int64(s.blocks) * s.blockSize, BlockSize: int(s.blockSize)}
}

// Root implements fs.FS.
func (f *FS) Root() fs.Ref { return fs.Ref{Inode: f.s.root} }

// fields are where a structure of version 5 says what and where it is.
type fields struct {
	name                    string
	crc, blkno, uuid, owner int
}

var (
	treeFields = fields{"bb_crc", 64, 24, 40, 56}   // struct xfs_btree_block, long
	dirFields  = fields{"hdr.crc", 4, 8, 24, 40}    // struct xfs_dir3_blk_hdr
	attrFields = fields{"info.crc", 12, 16, 32, 48} // struct xfs_da3_blkinfo
	linkFields = fields{"sl_crc", 12, 40, 16, 32}   // struct xfs_dsymlink_hdr
	valFields  = fields{"rm_crc", 12, 40, 16, 32}   // struct xfs_attr3_rmt_hdr
)

// verify wants a structure of version 5 that lies at byte at to be whole, of this
// file system, of this place and of this inode.
func (f *FS) verify(b []byte, at int64, l fields, owner uint64) error {
	if sum := le.Uint32(b[l.crc:]); !f.unsummed && !f.changed(at, int64(len(b))) && checksum(b, l.crc) != sum {
		return damaged(at+int64(l.crc), l.name, sum, fmt.Sprintf("a block of inode %d has a wrong checksum", owner))
	}
	if [16]byte(b[l.uuid:]) != f.s.metaUUID {
		return damaged(at+int64(l.uuid), "uuid", fmt.Sprintf("%x", b[l.uuid:l.uuid+16]), fmt.Sprintf("a block of inode %d is another file system's", owner))
	}
	if n := be.Uint64(b[l.blkno:]); n != uint64(at/512) {
		return damaged(at+int64(l.blkno), "blkno", n, fmt.Sprintf("a block of inode %d is one from elsewhere", owner))
	}
	if n := be.Uint64(b[l.owner:]); n != owner {
		return damaged(at+int64(l.owner), "owner", n, fmt.Sprintf("a block of inode %d has another owner", owner))
	}
	return nil
}

// changed reports whether the log may have changed a structure: its checksum is that
// of before, then, and the log's records have theirs. One of several blocks need
// not lie in one piece.
func (f *FS) changed(at, n int64) bool {
	return f.view.touched(at, n) || f.view != nil && n > f.s.blockSize
}
