package btrfs

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/store/btrfs"
)

// file is the content of one.
type file struct {
	x    *FS
	r    fs.Ref
	t    *btrfs.Tree
	size int64

	mu   sync.Mutex // guards what was decoded last
	last struct {
		at   uint64
		data []byte
	}
}

func (f *file) Size() int64 { return f.size }

// run is a part of a file that is alike.
type run struct {
	off, len int64
	kind     fs.Kind
	// of what is not a hole:
	logical uint64 // where the extent begins, or the bytes of what is not encoded
	disk    uint64 // bytes that it takes there
	ram     uint64 // bytes that it has when it is decoded
	in      uint64 // where in those the run begins
	coding  coding
	inline  []byte
}

// An extent item, struct btrfs_file_extent_item:
//
//	 8 8 ram_bytes       21 8 disk_bytenr; or the bytes, where it is inline
//	16 1 compression     29 8 disk_num_bytes
//	17 1 encryption      37 8 offset
//	18 2 other_encoding  45 8 num_bytes
//	20 1 type
const (
	extentHeader = 21
	extentSize   = 53

	extentInline   = 0
	extentRegular  = 1
	extentPrealloc = 2

	// maxEncoded is the most that an encoded extent has, decoded or not: the
	// kernel makes them of 128 KiB.
	maxEncoded = 1 << 20
)

// parse reads the extent item at byte off of the file.
func (f *file) parse(off uint64, b []byte) (run, error) {
	bad := func(field string, v any, why string) (run, error) { return run{}, damaged(f.r, field, v, why) }
	if len(b) < extentHeader || off > 1<<62 {
		return bad("extent item", len(b), "is too short")
	}
	x := run{off: int64(off), ram: le.Uint64(b[8:]), coding: coding(b[16])}
	switch {
	case b[17] != 0 || le.Uint16(b[18:]) != 0:
		return run{}, fmt.Errorf("%v: %w", f.r, fs.ErrEncrypted)
	case !x.coding.known():
		return bad("compression", b[16], "is not known")
	case x.coding != plain && x.ram > maxEncoded:
		return bad("ram_bytes", x.ram, "is more than a compressed extent has")
	}
	if b[20] == extentInline {
		x.kind, x.inline = fs.Encoded, append([]byte{}, b[extentHeader:]...)
		if x.ram > maxEncoded || x.coding == plain && x.ram > uint64(len(x.inline)) {
			return bad("ram_bytes", x.ram, "is more than an inline extent has")
		}
		x.len = int64(x.ram)
		return x, nil
	}
	if len(b) < extentSize || b[20] > extentPrealloc {
		return bad("extent type", b[20], "is not known, or the item is too short")
	}
	x.logical, x.disk, x.in = le.Uint64(b[21:]), le.Uint64(b[29:]), le.Uint64(b[37:])
	n := le.Uint64(b[45:])
	if n == 0 || n > 1<<62 || x.in > 1<<62 {
		return bad("num_bytes", n, "makes no sense")
	}
	x.len = int64(n)
	switch {
	case x.logical == 0:
		x.kind = fs.Hole
	case x.coding != plain:
		x.kind = fs.Encoded
		if x.disk > maxEncoded || x.in+n > x.ram {
			return bad("disk_num_bytes", x.disk, "does not fit the compressed extent")
		}
	case x.in+n > x.disk:
		return bad("num_bytes", n, "is more than the extent has")
	default:
		x.kind = fs.Data
		if b[20] == extentPrealloc {
			x.kind = fs.Unwritten
		}
		x.logical, x.in = x.logical+x.in, 0
	}
	return x, nil
}

// runs calls fn for those that cover [off, end) of the file, which is not beyond
// its size, cut at both.
func (f *file) runs(off, end int64, fn func(run) error) error {
	from := btrfs.Key{Object: f.r.Inode, Type: btrfs.ExtentData, Offset: uint64(off)}
	k, _, err := f.t.Floor(from)
	if err != nil {
		return fmt.Errorf("%v: %w", f.r, err)
	}
	if k.Object == from.Object && k.Type == from.Type {
		from = k
	}
	pos := off
	hole := func(until int64) error {
		if until <= pos {
			return nil
		}
		x := run{off: pos, len: until - pos, kind: fs.Hole}
		pos = until
		return fn(x)
	}
	last := int64(0) // where the extent before ended
	err = f.t.Walk(from, func(k btrfs.Key, b []byte) (bool, error) {
		if k.Object != f.r.Inode || k.Type != btrfs.ExtentData || pos >= end || int64(k.Offset) >= end {
			return false, nil
		}
		x, err := f.parse(k.Offset, b)
		if err != nil {
			return false, err
		}
		if x.off < last {
			return false, damaged(f.r, "extent", x.off, "lies on the one before it")
		}
		last = x.off + x.len
		if err := hole(min(x.off, end)); err != nil {
			return false, err
		}
		if skip := pos - x.off; skip > 0 {
			if skip >= x.len {
				return true, nil
			}
			x.off, x.len, x.in = pos, x.len-skip, x.in+uint64(skip)
			if x.kind == fs.Data || x.kind == fs.Unwritten {
				x.logical, x.in = x.logical+uint64(skip), 0
			}
		}
		x.len = min(x.len, end-x.off)
		pos = x.off + x.len
		return true, fn(x)
	})
	if err == nil {
		err = hole(end)
	}
	return err
}

// ReadAt implements fs.File.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("%v: %w", f.r, lun.ErrOutOfRange)
	case off >= f.size:
		return 0, io.EOF
	}
	var short error
	if int64(len(p)) > f.size-off {
		p, short = p[:f.size-off], io.EOF
	}
	done := 0
	err := f.runs(off, off+int64(len(p)), func(x run) error {
		to := p[x.off-off:][:x.len]
		if err := f.fill(to, x); err != nil {
			return fmt.Errorf("%v at byte %d: %w", f.r, x.off, err)
		}
		done = int(x.off-off) + len(to)
		return nil
	})
	if err != nil {
		return done, err
	}
	return done, short
}

func (f *file) fill(p []byte, x run) error {
	switch x.kind {
	case fs.Hole, fs.Unwritten:
		clear(p)
		return nil
	case fs.Data:
		return f.x.f.ReadData(p, x.logical)
	}
	whole, err := f.decoded(x)
	if err != nil {
		return err
	}
	clear(p[copy(p, whole[min(x.in, uint64(len(whole))):]):])
	return nil
}

// decoded is the content of an encoded extent. The last one is kept, since whoever
// reads small pieces reads it many times.
func (f *file) decoded(x run) ([]byte, error) {
	if x.coding == plain {
		return x.inline, nil
	}
	if x.inline != nil {
		return x.coding.decode(x.inline, int(x.ram), f.x.f.SectorSize(), true)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last.data != nil && f.last.at == x.logical && len(f.last.data) == int(x.ram) {
		return f.last.data, nil
	}
	b := make([]byte, x.disk)
	if err := f.x.f.ReadData(b, x.logical); err != nil {
		return nil, err
	}
	data, err := x.coding.decode(b, int(x.ram), f.x.f.SectorSize(), false)
	if err != nil {
		return nil, err
	}
	f.last.at, f.last.data = x.logical, data
	return data, nil
}

// Extents implements fs.File.
func (f *file) Extents(off, n int64, fn func(fs.Extent) error) error {
	if off < 0 || n < 0 {
		return fmt.Errorf("%v: %w", f.r, lun.ErrOutOfRange)
	}
	if off >= f.size {
		return nil
	}
	var stop error
	err := f.runs(off, off+min(n, f.size-off), func(x run) error {
		for x.len > 0 {
			e := fs.Extent{Off: x.off, Len: x.len, Kind: x.kind}
			if x.kind == fs.Data || x.kind == fs.Unwritten {
				at, most, err := f.x.f.Locate(x.logical, x.len)
				if err != nil {
					return fmt.Errorf("%v at byte %d: %w", f.r, x.off, err)
				}
				e.Device, e.Len = at, most
			}
			if stop = fn(e); stop != nil {
				return errDone
			}
			x.off, x.len, x.logical = x.off+e.Len, x.len-e.Len, x.logical+uint64(e.Len)
		}
		return nil
	})
	if errors.Is(err, errDone) {
		return stop
	}
	return err
}
