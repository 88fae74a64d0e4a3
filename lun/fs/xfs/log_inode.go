package xfs

import (
	"fmt"
)

// What of an inode was logged: ilf_fields.
const (
	loggedData     = 0x2 | 0x4 | 0x8        // as bytes, extents, or the root of a tree
	loggedDataRoot = 0x8                    // XFS_ILOG_DBROOT
	loggedDevice   = 0x10                   // XFS_ILOG_DEV
	loggedAttr     = 0x40 | 0x80 | 0x100    // the same of attributes
	loggedAttrRoot = 0x100                  // XFS_ILOG_ABROOT
	inodeItem      = 56                     // struct xfs_inode_log_format
	inodeItem32    = 52                     // that of 32-bit kernels
	inodeHead      = 176                    // struct xfs_log_dinode; the forks follow
	inodeFields    = "xfs_inode_log_format" // in messages
)

// inode replays an inode's item: xlog_recover_inode_commit_pass2().
func (r *replay) inode(t *transaction, i *item) error {
	h := i.regions[0]
	var block, n, off int64
	switch len(h) {
	case inodeItem:
		block, n, off = int64(le.Uint64(h[40:])), int64(le.Uint32(h[48:])), int64(le.Uint32(h[52:]))
	case inodeItem32:
		block, n, off = int64(le.Uint64(h[36:])), int64(le.Uint32(h[44:])), int64(le.Uint32(h[48:]))
	default:
		return fmt.Errorf("%s has %d bytes", inodeFields, len(h))
	}
	if r.cancelled[[2]int64{block, n}] > 0 {
		return nil
	}
	at, err := r.at(block, n)
	if err != nil {
		return err
	}
	size := r.f.s.inodeSize
	if off < 0 || off%size != 0 || off+size > n*logBlock {
		return fmt.Errorf("ilf_boffset is %d in %d basic blocks", off, n)
	}
	at += off
	b := make([]byte, size)
	if _, err := r.v.ReadAt(b, at); err != nil {
		return fmt.Errorf("xfs log: %w", err)
	}
	if be.Uint16(b) != inodeMagic {
		return fmt.Errorf("byte %d of the device, which an inode was logged of, holds none", at)
	}
	if len(i.regions) < 2 {
		return fmt.Errorf("an inode's item has no core")
	}
	core := i.regions[1]
	older, err := replayCore(b, core, t.lsn)
	if older || err != nil {
		return err
	}
	if err := replayForks(b, i); err != nil {
		return err
	}
	return r.v.patch(b, at)
}

// replayCore writes the core of an inode, which is logged in the host's byte order, and
// reports whether that on the device is newer.
func replayCore(b, core []byte, now lsn) (newer bool, err error) {
	if len(core) < inodeHead || le.Uint16(core) != inodeMagic {
		return false, fmt.Errorf("the core of an inode has %d bytes, or is none", len(core))
	}
	if stamp := lsn(be.Uint64(b[112:])); stamp != 0 && stamp != ^lsn(0) && stamp > now {
		return true, nil
	}
	big := le.Uint64(core[120:])&flag2Bigtime != 0
	many := le.Uint64(core[120:])&flag2NrExt64 != 0
	put16 := func(at int) { be.PutUint16(b[at:], le.Uint16(core[at:])) }
	put32 := func(at int) { be.PutUint32(b[at:], le.Uint32(core[at:])) }
	put64 := func(at int) { be.PutUint64(b[at:], le.Uint64(core[at:])) }
	stamp := func(at int) {
		if big {
			put64(at)
			return
		}
		put32(at)
		put32(at + 4)
	}
	put16(0)
	put16(2)
	copy(b[4:8], core[4:8]) // version, format
	put32(8)
	put32(12)
	put32(16)
	put16(20)
	put16(22)
	clear(b[24:32])
	if many {
		put64(24)
	}
	stamp(32)
	stamp(40)
	stamp(48)
	put64(56)
	put64(64)
	put32(72)
	put32(76)
	put16(80)
	copy(b[82:84], core[82:84]) // forkoff, aformat
	put32(84)
	put16(88)
	put16(90)
	put32(92)
	put64(104)
	be.PutUint64(b[112:], uint64(now))
	put64(120)
	put32(128)
	copy(b[132:144], core[132:144])
	stamp(144)
	put64(152)
	copy(b[160:176], core[160:176])
	return false, nil
}

// replayForks writes what was logged of the forks. Extents are logged as they are on the
// disk.
func replayForks(b []byte, i *item) error {
	fields := le.Uint32(i.regions[0][4:])
	data, attr := b[inodeHead:], []byte(nil)
	if off := int(b[82]) * 8; off != 0 {
		if off >= len(data) {
			return fmt.Errorf("di_forkoff is %d", b[82])
		}
		data, attr = data[:off], data[off:]
	}
	if fields&loggedDevice != 0 {
		at := len(i.regions[0]) - 32 // ilf_u
		be.PutUint32(data, le.Uint32(i.regions[0][at:]))
	}
	next := 2
	for _, x := range []struct {
		fork       []byte
		some, root uint32
	}{{data, loggedData, loggedDataRoot}, {attr, loggedAttr, loggedAttrRoot}} {
		if fields&x.some == 0 {
			continue
		}
		if next >= len(i.regions) {
			return fmt.Errorf("an inode's item lacks a fork")
		}
		from := i.regions[next]
		next++
		if fields&x.some == x.root {
			if err := root(x.fork, from); err != nil {
				return err
			}
			continue
		}
		if len(from) > len(x.fork) {
			return fmt.Errorf("a fork of %d bytes was logged where there is room for %d", len(from), len(x.fork))
		}
		copy(x.fork, from)
	}
	return nil
}

// root writes the root of a tree, which is logged with the head that a block has,
// and as large as in memory: xfs_bmbt_to_bmdr().
func root(fork, from []byte) error {
	const head = 72
	if len(from) < head || len(fork) < 4 {
		return fmt.Errorf("the root of a tree has %d bytes", len(from))
	}
	n := int(be.Uint16(from[6:]))
	have, room := (len(from)-head)/16, (len(fork)-4)/16
	if n > have || n > room {
		return fmt.Errorf("the root of a tree has %d records, and room for %d and %d", n, have, room)
	}
	copy(fork, from[4:8]) // level, number
	copy(fork[4:], from[head:head+8*n])
	copy(fork[4+8*room:], from[head+8*have:head+8*have+8*n])
	return nil
}
