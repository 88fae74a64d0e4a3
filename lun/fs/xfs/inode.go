package xfs

import (
	"fmt"
	"time"

	"github.com/cleave-san/cleave/lun/fs"
)

const inodeMagic = 0x494E // "IN"

// Flags of an inode: di_flags, di_flags2.
const (
	flagRealtime = 0x1

	flag2Reflink = 0x2
	flag2Bigtime = 0x8
	flag2NrExt64 = 0x10
)

// How a fork is kept: di_format, di_aformat.
const (
	formatDevice  = 0
	formatLocal   = 1
	formatExtents = 2
	formatTree    = 3
)

// inode is one as it is on the disk, checked.
type inode struct {
	number uint64
	at     int64 // byte on the device
	raw    []byte
	mode   uint16
	flags  uint16
	flags2 uint64
	size   int64
	blocks uint64
	data   fork
	attr   fork // raw is nil without attributes
}

// fork is where something of an inode is kept.
type fork struct {
	name   string
	format uint8
	count  uint64 // extents
	raw    []byte
}

func (n *inode) kind() fs.Type { return fs.TypeOf(uint32(n.mode)) }

// inode reads an inode. One that is not in use is fs.ErrNotExist.
func (f *FS) inode(number uint64) (*inode, error) {
	s := f.s
	at, ok := s.byteOf(number>>s.inodeLog, 1)
	if !ok {
		return nil, fmt.Errorf("xfs inode %d: %w", number, fs.ErrNotExist)
	}
	at += int64(number&(1<<s.inodeLog-1)) * s.inodeSize
	b := make([]byte, s.inodeSize)
	if _, err := f.meta.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("xfs inode %d: %w", number, err)
	}
	bad := func(off int64, field string, value any, reason string) error {
		return damaged(at+off, field, value, fmt.Sprintf("inode %d: %s", number, reason))
	}
	if magic := be.Uint16(b); magic != inodeMagic {
		return nil, bad(0, "di_magic", magic, "there is no inode")
	}
	n := &inode{number: number, at: at, raw: b, mode: be.Uint16(b[2:]), flags: be.Uint16(b[90:]), size: int64(be.Uint64(b[56:])), blocks: be.Uint64(b[64:])}
	head := 100
	switch version := b[4]; {
	case s.v5 != (version == 3) || version == 0 || version > 3:
		return nil, bad(4, "di_version", version, "is not one of this file system")
	case s.v5:
		head, n.flags2 = 176, be.Uint64(b[120:])
		if sum := le.Uint32(b[100:]); !f.unsummed && !f.view.touched(at, s.inodeSize) && checksum(b, 100) != sum {
			return nil, bad(100, "di_crc", sum, "its checksum is wrong")
		}
		if own := be.Uint64(b[152:]); own != number {
			return nil, bad(152, "di_ino", own, "is another inode")
		}
		if [16]byte(b[160:]) != s.metaUUID {
			return nil, bad(160, "di_uuid", fmt.Sprintf("%x", b[160:176]), "is another file system's")
		}
	}
	if n.mode == 0 {
		return nil, fmt.Errorf("xfs inode %d: %w", number, fs.ErrNotExist)
	}
	if n.kind() == fs.Unknown {
		return nil, bad(2, "di_mode", n.mode, "is no type of a file")
	}
	if n.size < 0 {
		return nil, bad(56, "di_size", uint64(n.size), "no file has that size")
	}
	if n.blocks > s.blocks {
		return nil, bad(64, "di_nblocks", n.blocks, "is more than the file system has")
	}
	n.data = fork{"data", b[5], uint64(be.Uint32(b[76:])), b[head:]}
	extents := uint64(be.Uint16(b[80:]))
	if n.flags2&flag2NrExt64 != 0 {
		n.data.count, extents = be.Uint64(b[24:]), uint64(be.Uint32(b[76:]))
	}
	if off := int(b[82]) * 8; off != 0 {
		if off >= len(b)-head {
			return nil, bad(82, "di_forkoff", b[82], "lies outside of the inode")
		}
		n.data.raw, n.attr = b[head:head+off], fork{"attribute", b[83], extents, b[head+off:]}
	}
	return n, nil
}

// Stat implements fs.FS.
func (f *FS) Stat(r fs.Ref) (fs.Stat, error) {
	n, err := f.get(r)
	if err != nil {
		return fs.Stat{}, err
	}
	b := n.raw
	st := fs.Stat{
		Ref: r, Type: n.kind(), Mode: n.mode & 0o7777, UID: be.Uint32(b[8:]), GID: be.Uint32(b[12:]), Links: be.Uint32(b[16:]),
		Size: n.size, Allocated: int64(n.blocks) * f.s.blockSize,
		Accessed: n.time(32), Modified: n.time(40), Changed: n.time(48),
		NoXattrs: n.attr.raw == nil || n.attr.format == formatExtents && n.attr.count == 0,
	}
	if b[4] == 1 {
		st.Links = uint32(be.Uint16(b[6:]))
	}
	if f.s.v5 {
		st.Born = n.time(144)
	}
	if (st.Type == fs.CharDevice || st.Type == fs.BlockDevice) && n.data.format == formatDevice && len(n.data.raw) >= 4 {
		dev := be.Uint32(n.data.raw)
		st.Major, st.Minor = dev>>18, dev&(1<<18-1)
	}
	return st, nil
}

// get is inode for a Ref.
func (f *FS) get(r fs.Ref) (*inode, error) {
	if r.Tree != 0 {
		return nil, fmt.Errorf("xfs %v: %w", r, fs.ErrNotExist)
	}
	return f.inode(r.Inode)
}

// time reads a timestamp: seconds and nanoseconds, or with bigtime nanoseconds
// since the least second of those.
func (n *inode) time(off int) time.Time {
	v := be.Uint64(n.raw[off:])
	if n.flags2&flag2Bigtime != 0 {
		return time.Unix(int64(v/1e9)-1<<31, int64(v%1e9))
	}
	return time.Unix(int64(int32(v>>32)), int64(int32(v)))
}
