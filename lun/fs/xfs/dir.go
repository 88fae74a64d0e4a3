package xfs

import (
	"fmt"

	"github.com/cleave-san/cleave/lun/fs"
)

// Magics of blocks with entries: of a directory of one block, which has its index
// at its end, and of others; by version.
const (
	blockMagic4 = 0x58443242 // "XD2B"
	blockMagic5 = 0x58444233 // "XDB3"
	dataMagic4  = 0x58443244 // "XD2D"
	dataMagic5  = 0x58444433 // "XDD3"

	freeTag = 0xFFFF

	// leafOffset is the byte of a directory where its index begins.
	leafOffset = 32 << 30
)

// entryTypes are by the file type of an entry.
var entryTypes = [8]fs.Type{fs.Unknown, fs.Regular, fs.Directory, fs.CharDevice, fs.BlockDevice, fs.Pipe, fs.Socket, fs.Symlink}

// Lookup implements fs.FS. It reads the directory from its beginning.
func (f *FS) Lookup(dir fs.Ref, name string) (fs.Ref, error) {
	ref, err := fs.Search(f, dir, name)
	if err == fs.ErrNotExist {
		err = fmt.Errorf("%.200q in xfs %v: %w", name, dir, err)
	}
	return ref, err
}

// List implements fs.FS. Next is the byte after an entry. The index is not used.
func (f *FS) List(dir fs.Ref, after uint64, fn func(fs.Entry) error) error {
	n, err := f.get(dir)
	switch {
	case err != nil:
		return err
	case n.kind() != fs.Directory:
		return fmt.Errorf("xfs %v: %w", dir, fs.ErrNotDir)
	}
	d := dirReader{f: f, n: n, after: after, fn: fn}
	if n.data.format == formatLocal {
		return d.shortform()
	}
	if n.size > leafOffset || n.size%f.s.dirBlock != 0 {
		return damaged(n.at+56, "di_size", n.size, fmt.Sprintf("inode %d: no directory has that size", n.number))
	}
	per := uint64(f.s.dirBlock / f.s.blockSize)
	for block, end := after/uint64(f.s.dirBlock)*per, uint64(n.size/f.s.blockSize); block < end; {
		b, at, next, ok, err := f.readFork(n, &n.data, block, f.s.dirBlock)
		if err != nil {
			return err
		}
		if !ok {
			block = max(block+per, next/per*per)
			continue
		}
		if err := d.block(b, at, int64(block)*f.s.blockSize); err != nil {
			return err
		}
		block += per
	}
	return nil
}

// dirReader hands entries on.
type dirReader struct {
	f     *FS
	n     *inode
	after uint64
	fn    func(fs.Entry) error
}

func (d *dirReader) bad(at int64, field string, value any, reason string) error {
	return damaged(d.n.at, field, value, fmt.Sprintf("directory inode %d, byte %d: %s", d.n.number, at, reason))
}

// emit hands an entry on that begins at byte at of the directory and ends at next.
func (d *dirReader) emit(at, next int64, name string, inode uint64, kind uint8) error {
	if uint64(next) <= d.after || name == "." || name == ".." {
		return nil
	}
	if !fs.GoodName(name) {
		return d.bad(at, "name", name, "is no name of a file")
	}
	e := fs.Entry{Name: name, Ref: fs.Ref{Inode: inode}, Next: uint64(next)}
	if int(kind) < len(entryTypes) {
		e.Type = entryTypes[kind]
	}
	return d.fn(e)
}

// shortform lists a directory in an inode (struct xfs_dir2_sf_hdr): numbers of
// four bytes, or of eight if any needs them.
func (d *dirReader) shortform() error {
	b, ftype := d.n.data.raw, 0
	if d.f.s.ftype {
		ftype = 1
	}
	if d.n.size > int64(len(b)) || d.n.size < 6 {
		return d.bad(0, "di_size", d.n.size, "does not fit the inode")
	}
	b = b[:d.n.size]
	count, wide := int(b[0]), 4
	if b[1] != 0 {
		count, wide = max(count, int(b[1])), 8
	}
	at := 2 + wide
	for range count {
		if at+3 > len(b) {
			return d.bad(int64(at), "count", count, "not all entries are there")
		}
		name := at + 3
		end := name + int(b[at]) + ftype + wide
		if end > len(b) {
			return d.bad(int64(at), "namelen", b[at], "an entry does not fit")
		}
		kind, number := uint8(0), uint64(0)
		if ftype != 0 {
			kind = b[name+int(b[at])]
		}
		if wide == 8 {
			number = be.Uint64(b[end-8:])
		} else {
			number = uint64(be.Uint32(b[end-4:]))
		}
		if err := d.emit(int64(at), int64(end), string(b[name:name+int(b[at])]), number, kind); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// block lists a block that lies at byte at of the device and is at byte off of the
// directory.
func (d *dirReader) block(b []byte, at, off int64) error {
	head, end := 16, len(b)
	magic := be.Uint32(b)
	single := magic == blockMagic4
	if d.f.s.v5 {
		head, single = 64, magic == blockMagic5
	}
	if !single && (d.f.s.v5 && magic != dataMagic5 || !d.f.s.v5 && magic != dataMagic4) {
		return damaged(at, "magic", magic, fmt.Sprintf("is no block of directory inode %d", d.n.number))
	}
	if d.f.s.v5 {
		if err := d.f.verify(b, at, dirFields, d.n.number); err != nil {
			return err
		}
	}
	if single { // struct xfs_dir2_block_tail, and the index before it
		count := int64(be.Uint32(b[end-8:]))
		if count > int64(end-8-head)/8 {
			return damaged(at+int64(end-8), "count", count, fmt.Sprintf("directory inode %d: the index does not fit its block", d.n.number))
		}
		end -= 8 + 8*int(count)
	}
	for i := head; i < end; {
		n, err := d.entry(b[i:end], off+int64(i))
		if err != nil {
			return err
		}
		i += n
	}
	return nil
}

// entry takes the entry or the free space that b begins with, and returns its length.
func (d *dirReader) entry(b []byte, at int64) (int, error) {
	if len(b) < 8 {
		return 0, d.bad(at, "length", len(b), "the last entry is too short")
	}
	if be.Uint16(b) == freeTag {
		n := int(be.Uint16(b[2:]))
		if n < 8 || n%8 != 0 || n > len(b) {
			return 0, d.bad(at, "length", n, "free space does not fit")
		}
		return n, nil
	}
	if len(b) < 16 {
		return 0, d.bad(at, "length", len(b), "the last entry is too short")
	}
	name, kind := 9+int(b[8]), uint8(0)
	size := name + 2
	if d.f.s.ftype {
		size++
	}
	size = (size + 7) &^ 7
	if b[8] == 0 || size > len(b) {
		return 0, d.bad(at, "namelen", b[8], "an entry does not fit")
	}
	if d.f.s.ftype {
		kind = b[name]
	}
	return size, d.emit(at, at+int64(size), string(b[9:name]), be.Uint64(b), kind)
}
