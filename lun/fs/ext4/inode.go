package ext4

import (
	"bytes"
	"fmt"
	"time"

	"github.com/cleave-san/cleave/lun/fs"
)

// Flags of an inode.
const (
	flagEncrypt  = 0x800
	flagIndex    = 0x1000
	flagHugeFile = 0x40000
	flagExtents  = 0x80000
	flagEAInode  = 0x200000
	flagInline   = 0x10000000
)

// inode is one as it is on the disk, checked.
type inode struct {
	number uint32
	raw    []byte
	mode   uint16
	flags  uint32
	size   int64
	seed   uint32 // of checksums of its blocks
	acl    uint64 // block with attributes
	extra  int64  // i_extra_isize
}

func (n *inode) kind() fs.Type  { return fs.TypeOf(uint32(n.mode)) }
func (n *inode) blocks() []byte { return n.raw[0x28:0x64] } // i_block
func (n *inode) has(f uint32) bool {
	return n.flags&f != 0
}

// group reads where a group's inodes are.
func (f *FS) group(g uint32) (table uint64, err error) {
	s := f.s
	off := s.descriptor(g)
	d := make([]byte, s.descSize)
	if _, err := f.meta.ReadAt(d, off); err != nil {
		return 0, fmt.Errorf("ext4 descriptor of group %d: %w", g, err)
	}
	if !f.groupOK(g, d) {
		return 0, damaged(off+0x1E, "bg_checksum", le.Uint16(d[0x1E:]), fmt.Sprintf("the descriptor of group %d has a wrong checksum", g))
	}
	table = uint64(le.Uint32(d[8:]))
	if len(d) >= 64 {
		table |= uint64(le.Uint32(d[0x28:])) << 32
	}
	need := (uint64(s.inodesPerGroup)*uint64(s.inodeSize) + uint64(s.blockSize) - 1) / uint64(s.blockSize)
	if table <= s.firstData || table >= s.blocks || s.blocks-table < need {
		return 0, damaged(off+8, "bg_inode_table", table, "is not within the file system")
	}
	return table, nil
}

func (f *FS) groupOK(g uint32, d []byte) bool {
	s, stored := f.s, le.Uint16(d[0x1E:])
	var n [4]byte
	le.PutUint32(n[:], g)
	switch {
	case s.csum():
		sum := crc32c(crc32c(crc32c(s.seed, n[:]), d[:0x1E]), []byte{0, 0})
		return uint16(crc32c(sum, d[0x20:])) == stored
	case s.ro&roGDTCsum != 0:
		sum := crc16(crc16(crc16(^uint16(0), s.raw[0x68:0x78]), n[:]), d[:0x1E])
		return crc16(sum, d[0x20:]) == stored
	}
	return true
}

// inode reads an inode. One that is not in use is fs.ErrNotExist.
func (f *FS) inode(number uint32) (*inode, error) {
	s := f.s
	if number == 0 || number > s.inodes {
		return nil, fmt.Errorf("ext4 inode %d: %w", number, fs.ErrNotExist)
	}
	g, i := (number-1)/s.inodesPerGroup, (number-1)%s.inodesPerGroup
	table, err := f.group(g)
	if err != nil {
		return nil, err
	}
	off := int64(table)*s.blockSize + int64(i)*s.inodeSize
	b := make([]byte, s.inodeSize)
	if _, err := f.meta.ReadAt(b, off); err != nil {
		return nil, fmt.Errorf("ext4 inode %d: %w", number, err)
	}
	n := &inode{number: number, raw: b, mode: le.Uint16(b), flags: le.Uint32(b[0x20:])}
	if n.mode == 0 || le.Uint16(b[0x1A:]) == 0 && !n.has(flagEAInode) && number > rootInode && number != s.journal {
		return nil, fmt.Errorf("ext4 inode %d: %w", number, fs.ErrNotExist)
	}
	if s.inodeSize > 128 {
		n.extra = int64(le.Uint16(b[0x80:]))
		if n.extra > s.inodeSize-128 || n.extra%4 != 0 {
			return nil, damaged(off+0x80, "i_extra_isize", n.extra, "is not within the inode")
		}
	}
	n.seed = f.inodeSeed(n)
	if s.csum() && !n.sumOK() {
		return nil, damaged(off+0x7C, "i_checksum", le.Uint16(b[0x7C:]), fmt.Sprintf("inode %d has a wrong checksum", number))
	}
	n.size = int64(le.Uint32(b[4:]))
	if n.kind() == fs.Regular || n.kind() == fs.Directory && s.incompat&incompatLargeDir != 0 {
		n.size |= int64(le.Uint32(b[0x6C:])) << 32
	}
	if n.size < 0 {
		return nil, damaged(off+0x6C, "i_size", n.size, "is negative")
	}
	n.acl = uint64(le.Uint32(b[0x68:])) | uint64(le.Uint16(b[0x76:]))<<32
	return n, nil
}

func (f *FS) inodeSeed(n *inode) uint32 {
	var b [4]byte
	le.PutUint32(b[:], n.number)
	return crc32c(crc32c(f.s.seed, b[:]), n.raw[0x64:0x68])
}

// sumOK checks the inode's checksum, half of which is in the part that old
// inodes don't have.
func (n *inode) sumOK() bool {
	stored := uint32(le.Uint16(n.raw[0x7C:]))
	b := bytes.Clone(n.raw)
	clear(b[0x7C:0x7E])
	if n.extra >= 4 {
		stored |= uint32(le.Uint16(b[0x82:])) << 16
		clear(b[0x82:0x84])
		return crc32c(n.seed, b) == stored
	}
	return crc32c(n.seed, b)&0xffff == stored
}

// time is a time with its extra field, which has two more bits of seconds and
// the nanoseconds, if the inode has that.
func (n *inode) time(off, extra int64) time.Time {
	if off >= 128 && n.extra+128 < off+4 {
		return time.Time{}
	}
	sec, nsec := int64(int32(le.Uint32(n.raw[off:]))), int64(0)
	if 128+n.extra >= extra+4 {
		x := le.Uint32(n.raw[extra:])
		sec += int64(x&3) << 32
		nsec = int64(x >> 2)
	}
	return time.Unix(sec, nsec)
}

// Stat implements fs.FS.
func (f *FS) Stat(r fs.Ref) (fs.Stat, error) {
	n, err := f.get(r)
	if err != nil {
		return fs.Stat{}, err
	}
	b := n.raw
	st := fs.Stat{
		Ref: r, Type: n.kind(), Mode: n.mode & 0o7777, Links: uint32(le.Uint16(b[0x1A:])), Size: n.size, Allocated: f.allocated(n),
		UID:      uint32(le.Uint16(b[2:])) | uint32(le.Uint16(b[0x78:]))<<16,
		GID:      uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7A:]))<<16,
		Modified: n.time(0x10, 0x88), Changed: n.time(0xC, 0x84), Accessed: n.time(8, 0x8C), Born: n.time(0x90, 0x94),
		NoXattrs: n.acl == 0 && !f.holdsXattrs(n),
	}
	switch st.Type {
	case fs.Unknown:
		return fs.Stat{}, damaged(-1, "i_mode", n.mode, fmt.Sprintf("inode %d is of no type", n.number))
	case fs.CharDevice, fs.BlockDevice:
		st.Major, st.Minor = device(n.blocks())
	}
	return st, nil
}

// allocated is i_blocks in bytes.
func (f *FS) allocated(n *inode) int64 {
	v := int64(le.Uint32(n.raw[0x1C:]))
	if f.s.ro&roHugeFile == 0 {
		return v * 512
	}
	v |= int64(le.Uint16(n.raw[0x74:])) << 32
	if n.has(flagHugeFile) {
		return v * f.s.blockSize
	}
	return v * 512
}

// device reads a device number, in the old encoding or the new one.
func device(b []byte) (major, minor uint32) {
	if v := le.Uint32(b); v != 0 {
		return v >> 8 & 0xff, v & 0xff
	}
	v := le.Uint32(b[4:])
	return v >> 8 & 0xfff, v&0xff | v>>12&0xfff00
}

// get reads the inode of a Ref.
func (f *FS) get(r fs.Ref) (*inode, error) {
	if r.Tree != 0 || r.Inode > uint64(f.s.inodes) {
		return nil, fmt.Errorf("ext4 %v: %w", r, fs.ErrNotExist)
	}
	return f.inode(uint32(r.Inode))
}
