package ext4

import (
	"fmt"

	"github.com/cleave-san/cleave/lun/fs"
)

// tailType is the file type of the entry that holds a block's checksum.
const tailType = 0xDE

// entryTypes are by the file type of an entry.
var entryTypes = [8]fs.Type{fs.Unknown, fs.Regular, fs.Directory, fs.CharDevice, fs.BlockDevice, fs.Pipe, fs.Socket, fs.Symlink}

// Lookup implements fs.FS. It reads the directory from its beginning.
func (f *FS) Lookup(dir fs.Ref, name string) (fs.Ref, error) {
	ref, err := fs.Search(f, dir, name)
	if err == fs.ErrNotExist {
		err = fmt.Errorf("%.200q in ext4 %v: %w", name, dir, err)
	}
	return ref, err
}

// List implements fs.FS. Next is the byte after an entry. Blocks of a hash tree
// look empty to those who don't know them (struct fake_dirent), so all
// directories are read from end to end.
func (f *FS) List(dir fs.Ref, after uint64, fn func(fs.Entry) error) error {
	n, err := f.get(dir)
	switch {
	case err != nil:
		return err
	case n.kind() != fs.Directory:
		return fmt.Errorf("ext4 %v: %w", dir, fs.ErrNotDir)
	case n.has(flagEncrypt):
		return fmt.Errorf("ext4 %v: %w", dir, fs.ErrEncrypted)
	case n.has(flagInline):
		return f.listInline(n, after, fn)
	case n.size > int64(f.s.blocks)*f.s.blockSize || n.size%f.s.blockSize != 0:
		return damaged(-1, "i_size", n.size, fmt.Sprintf("inode %d: no directory has that size", n.number))
	}
	d := dirReader{f: f, n: n, after: after, fn: fn}
	size := uint64(f.s.blockSize)
	for block, end := after/size, uint64(n.size)/size; block < end; {
		r, err := f.run(n, block)
		if err != nil {
			return err
		}
		if r.kind != fs.Data {
			block = max(block+1, min(end, r.from+r.n)) // Linux passes over holes as well
			continue
		}
		for ; block < min(end, r.from+r.n); block++ {
			b, err := f.block(r.at+block-r.from, "directory block")
			if err != nil {
				return err
			}
			if err := f.dirSum(n, b, block); err != nil {
				return err
			}
			if err := d.entries(b, block*size); err != nil {
				return err
			}
		}
	}
	return nil
}

// listInline lists a directory in an inode: its parent, entries up to the end of
// i_block, then entries in an attribute, each part like a block.
func (f *FS) listInline(n *inode, after uint64, fn func(fs.Entry) error) error {
	b, err := f.inline(n)
	if err != nil {
		return err
	}
	d := dirReader{f: f, n: n, after: after, fn: fn}
	if len(b) < 4 {
		return damaged(-1, "i_size", len(b), fmt.Sprintf("inode %d: an inline directory has no parent", n.number))
	}
	inside := min(len(b), len(n.blocks()))
	if err := d.entries(b[4:inside], 4); err != nil {
		return err
	}
	return d.entries(b[inside:], uint64(inside))
}

// dirReader hands entries on.
type dirReader struct {
	f     *FS
	n     *inode
	after uint64
	fn    func(fs.Entry) error
}

// entries goes through a block that begins at byte at of the directory.
func (d *dirReader) entries(b []byte, at uint64) error {
	bad := func(field string, value any, reason string) error {
		return damaged(-1, field, value, fmt.Sprintf("directory inode %d, byte %d: %s", d.n.number, at, reason))
	}
	for len(b) > 0 {
		if len(b) < 8 {
			return bad("rec_len", len(b), "the last entry is too short")
		}
		n := recLen(b, d.f.s.blockSize)
		inode, nameLen, kind := le.Uint32(b), int(b[6]), b[7]
		if d.f.s.incompat&incompatFiletype == 0 {
			kind = 0
		}
		if n < 8 || n%4 != 0 || n > len(b) || 8+nameLen > n {
			return bad("rec_len", n, "an entry does not fit")
		}
		next := at + uint64(n)
		if inode != 0 && next > d.after {
			name := string(b[8 : 8+nameLen])
			if name != "." && name != ".." {
				if !fs.GoodName(name) {
					return bad("name", name, "is no name of a file")
				}
				e := fs.Entry{Name: name, Ref: fs.Ref{Inode: uint64(inode)}, Next: next}
				if kind < uint8(len(entryTypes)) {
					e.Type = entryTypes[kind]
				}
				if err := d.fn(e); err != nil {
					return err
				}
			}
		}
		b, at = b[n:], next
	}
	return nil
}

// recLen is rec_len, in which blocks of 64 KiB have their two lowest bits as
// the highest: ext4_rec_len_from_disk().
func recLen(b []byte, blockSize int64) int {
	n := int(le.Uint16(b[4:]))
	if blockSize < 65536 {
		return n
	}
	if n == 65535 || n == 0 {
		return int(blockSize)
	}
	return n&65532 | n&3<<16
}

// dirSum verifies the checksum of a directory block: of one with entries in an
// entry at its end, of a node of the hash tree after its entries.
func (f *FS) dirSum(n *inode, b []byte, block uint64) error {
	if !f.s.csum() {
		return nil
	}
	wrong := damaged(-1, "det_checksum", nil, fmt.Sprintf("block %d of directory inode %d has a wrong checksum", block, n.number))
	at := f.indexAt(n, b)
	if at < 0 {
		t := b[len(b)-12:]
		if le.Uint32(t) != 0 || le.Uint16(t[4:]) != 12 || t[6] != 0 || t[7] != tailType || crc32c(n.seed, b[:len(b)-12]) != le.Uint32(t[8:]) {
			return wrong
		}
		return nil
	}
	limit, count := int(le.Uint16(b[at:])), int(le.Uint16(b[at+2:]))
	if tail := at + 8*limit; count <= limit && tail+8 <= len(b) {
		sum := crc32c(crc32c(n.seed, b[:at+8*count]), b[tail:tail+4])
		if crc32c(sum, make([]byte, 4)) == le.Uint32(b[tail+4:]) {
			return nil
		}
	}
	return wrong
}

// indexAt is where the entries of a node of the hash tree begin, -1 if the block
// is none: get_dx_countlimit().
func (f *FS) indexAt(n *inode, b []byte) int {
	first := recLen(b, f.s.blockSize)
	switch {
	case !n.has(flagIndex):
	case first == len(b):
		return 8
	case first == 12 && recLen(b[12:], f.s.blockSize) == len(b)-12 && b[0x1D] == 8:
		return 32
	}
	return -1
}
