package ntfs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/lun/fs"
)

// Flags of an index entry.
const (
	entryNode = 0x1 // it has smaller ones below it
	entryLast = 0x2 // it has no name
)

const (
	indexName = "$I30"
	// nameDOS is the namespace of names of eight and three characters that a file has
	// besides a long one.
	nameDOS = 2
	// maxDepth bounds an index's tree.
	maxDepth = 32
	// maxBlock bounds a block of an index, in bytes.
	maxBlock = 64 << 10
	// posShift parts the position of an entry into its block and the byte there.
	posShift = 17
)

// index is that of a directory.
type index struct {
	f      *FS
	n      *inode
	root   entries // in the record
	blocks *stream
	size   int64 // of a block
	unit   int64 // that blocks are numbered in, in bytes
	used   []byte
}

// indexOf reads how a directory's index lies.
func (f *FS) indexOf(r fs.Ref) (*index, error) {
	n, err := f.get(r)
	if err != nil {
		return nil, err
	}
	if st, err := f.stat(n); err != nil || st.Type != fs.Directory {
		if err == nil {
			err = fs.ErrNotDir
		}
		return nil, fmt.Errorf("ntfs %v: %w", r, err)
	}
	a := n.find(typeRoot, indexName)
	if a == nil || !a.resident() || len(a.value) < 32 {
		return nil, n.damaged(0, "INDEX_ROOT", nil, "a directory has none")
	}
	x := &index{f: f, n: n, size: int64(le.Uint32(a.value[8:]))}
	if le.Uint32(a.value) != typeName || !power(x.size, fixupSize, maxBlock) {
		return nil, n.damaged(a.off, "BytesPerIndexBuffer", x.size, "is no index of names")
	}
	if x.unit = f.b.cluster; x.size < x.unit {
		x.unit = fixupSize
	}
	if x.root, err = entriesOf(a.value[16:]); err != nil {
		return nil, n.damaged(a.off, "INDEX_HEADER", nil, err.Error())
	}
	alloc, bits := n.find(typeIndex, indexName), n.find(typeBitmap, indexName)
	if alloc == nil || bits == nil {
		return x, nil
	}
	if alloc.resident() {
		return nil, n.damaged(alloc.off, "INDEX_ALLOCATION", nil, "has no clusters")
	}
	if x.blocks, err = f.stream(alloc); err != nil {
		return nil, err
	}
	x.used, err = f.value(bits, maxBits)
	return x, err
}

// maxBits bounds an index's bitmap, in bytes: 8 million blocks.
const maxBits = 1 << 20

// entries are those behind an index header.
type entries struct {
	b    []byte // from the header on
	from int    // where they begin
}

func entriesOf(header []byte) (entries, error) {
	from, end := le.Uint32(header), le.Uint32(header[4:])
	if from < 16 || from%8 != 0 || end < from || end > uint32(len(header)) {
		return entries{}, fmt.Errorf("entries from %d to %d are outside of it", from, end)
	}
	return entries{header[:end:end], int(from)}, nil
}

// block reads one by its number in units.
func (x *index) block(vcn int64) (entries, error) {
	none := entries{}
	at := vcn * x.unit
	if x.blocks == nil || vcn < 0 || vcn > maxVCN || at > x.blocks.a.size-x.size {
		return none, x.n.damaged(0, "INDEX_ALLOCATION", vcn, "there is no such block of the directory")
	}
	b := make([]byte, x.size)
	if _, err := x.blocks.readAt(x.f.meta, b, at); err != nil {
		return none, err
	}
	where, _, _, err := x.blocks.find(at, 1)
	if err != nil {
		return none, err
	}
	if err := fixup(b, where, "INDX"); err != nil {
		return none, err
	}
	if got := int64(le.Uint64(b[16:])); got != vcn {
		return none, damaged(where+16, "ThisBlock", got, fmt.Sprintf("want %d", vcn))
	}
	e, err := entriesOf(b[24:])
	if err != nil {
		return none, damaged(where+24, "INDEX_HEADER", nil, err.Error())
	}
	return e, nil
}

// indexEntry is a name in a directory as the index has it.
type indexEntry struct {
	number    uint64
	flags     uint16
	name      []uint16
	namespace byte
	attrs     uint32
	below     int64 // block of the smaller ones; -1: none
	pos       int   // byte behind the header that it begins at
}

// each calls fn for the entries of a block, the last without a name among them.
func (x *index) each(in entries, fn func(indexEntry) error) error {
	bad := func(off int, v any) error {
		return x.n.damaged(0, "INDEX_ENTRY", v, fmt.Sprintf("an entry at byte %d of an index is outside of it", off))
	}
	b, off := in.b, in.from
	for off < len(b) {
		if off+16 > len(b) {
			return bad(off, len(b))
		}
		size, key := int(le.Uint16(b[off+8:])), int(le.Uint16(b[off+10:]))
		e := indexEntry{number: le.Uint64(b[off:]) & numberMask, flags: le.Uint16(b[off+12:]), below: -1, pos: off}
		if size < 16 || size%8 != 0 || size > len(b)-off {
			return bad(off, size)
		}
		end := size
		if e.flags&entryNode != 0 {
			if end -= 8; end < 16 {
				return bad(off, size)
			}
			e.below = int64(le.Uint64(b[off+end:]))
		}
		if e.flags&entryLast == 0 {
			k := b[off+16 : off+end]
			if key < 66 || key > len(k) || 66+2*int(k[64]) > key {
				return bad(off, key)
			}
			e.attrs, e.namespace, e.name = le.Uint32(k[56:]), k[65], units(k[66:66+2*int(k[64])])
		}
		if err := fn(e); err != nil || e.flags&entryLast != 0 {
			return err
		}
		off += size
	}
	return nil
}

// hidden tells whether an entry is not shown: of another name that is, or NTFS's own.
func (e *indexEntry) hidden() bool {
	return e.flags&entryLast != 0 || e.namespace == nameDOS || e.number < firstUser
}

// List implements fs.FS: the root of the index and then its blocks by their number.
// Next is 1 more than an entry's place, the number of its block above it.
func (f *FS) List(dir fs.Ref, after uint64, fn func(fs.Entry) error) error {
	x, err := f.indexOf(dir)
	if err != nil {
		return err
	}
	list := func(b entries, block uint64) error {
		return x.each(b, func(e indexEntry) error {
			next := block<<posShift | uint64(e.pos) + 1
			if e.hidden() || next <= after {
				return nil
			}
			name := fs.FromUTF16(e.name)
			if !fs.GoodName(name) {
				return x.n.damaged(0, "FileName", name, "is no name of a file")
			}
			return fn(fs.Entry{Name: name, Ref: fs.Ref{Inode: e.number}, Type: e.kind(), Next: next})
		})
	}
	if after>>posShift == 0 {
		if err := list(x.root, 0); err != nil {
			return err
		}
	}
	if x.blocks == nil {
		return nil
	}
	first := uint64(1)
	if k := after >> posShift; k > 1 {
		first = k
	}
	for k := first; k <= uint64(x.blocks.a.size/x.size) && k <= uint64(8*len(x.used)); k++ {
		if x.used[(k-1)/8]>>((k-1)%8)&1 == 0 {
			continue
		}
		b, err := x.block(int64(k-1) * x.size / x.unit)
		if err != nil {
			return err
		}
		if err := list(b, k); err != nil {
			return err
		}
	}
	return nil
}

// kind is a file's type, unless it takes a look at the file.
func (e *indexEntry) kind() fs.Type {
	switch {
	case e.attrs&(fileReparse|fileSystem) != 0:
		return fs.Unknown
	case e.attrs&fileIndex != 0:
		return fs.Directory
	}
	return fs.Regular
}

// Lookup implements fs.FS: by the order of names in upper case, then of their units.
func (f *FS) Lookup(dir fs.Ref, name string) (fs.Ref, error) {
	x, err := f.indexOf(dir)
	if err != nil {
		return fs.Ref{}, err
	}
	none := fmt.Errorf("%.200q in ntfs %v: %w", name, dir, fs.ErrNotExist)
	want, ok := fs.ToUTF16(name)
	if !ok || !fs.GoodName(name) {
		return fs.Ref{}, none
	}
	b := x.root
	for range maxDepth {
		var found *indexEntry
		below := int64(-1)
		err := x.each(b, func(e indexEntry) error {
			if e.flags&entryLast == 0 {
				c := f.compare(want, e.name)
				if c > 0 {
					return nil
				}
				if c == 0 && !e.hidden() {
					found = &e
					return errFound
				}
			}
			below = e.below
			return errFound
		})
		if err != nil && err != errFound {
			return fs.Ref{}, err
		}
		if found != nil {
			return fs.Ref{Inode: found.number}, nil
		}
		if below < 0 {
			return fs.Ref{}, none
		}
		if b, err = x.block(below); err != nil {
			return fs.Ref{}, err
		}
	}
	return fs.Ref{}, x.n.damaged(0, "INDEX_ALLOCATION", name, "the directory's tree is too deep or contains itself")
}

var errFound = errors.New("found")

// compare orders names: COLLATION_FILE_NAME.
func (f *FS) compare(a, b []uint16) int {
	for i := range min(len(a), len(b)) {
		if c := cmp.Compare(f.upper(a[i]), f.upper(b[i])); c != 0 {
			return c
		}
	}
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return slices.Compare(a, b)
}

func (f *FS) upper(u uint16) uint16 {
	if int(u) < len(f.upcase) {
		return f.upcase[u]
	}
	return u
}
