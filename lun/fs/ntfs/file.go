package ntfs

import (
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// Open implements fs.FS. Where the file lies is read here.
func (f *FS) Open(r fs.Ref) (fs.File, error) {
	n, err := f.get(r)
	if err != nil {
		return nil, err
	}
	sp, err := f.special(n, n.fileFlags())
	if err != nil {
		return nil, err
	}
	if n.dir() || sp != nil && sp.kind != fs.Unknown {
		return nil, fmt.Errorf("ntfs %v: %w", r, fs.ErrNotFile)
	}
	if sp != nil {
		return nil, sp.refused(n)
	}
	a := n.find(typeData, "")
	switch {
	case a == nil:
		return nil, n.damaged(0, "$DATA", nil, "a file has none")
	case a.flags&attrEncrypted != 0:
		return nil, fmt.Errorf("ntfs %v: %w", r, fs.ErrEncrypted)
	}
	return f.content(a)
}

// content is that of an attribute.
func (f *FS) content(a *attr) (fs.File, error) {
	if a.resident() {
		return resident(a.value), nil
	}
	s, err := f.stream(a)
	switch {
	case err != nil:
		return nil, err
	case a.flags&attrCompressed == 0:
		return (*plain)(s), nil
	case a.flags&attrCompressed != 1 || a.unit == 0 || f.b.cluster<<a.unit > maxUnit:
		return nil, a.where.damaged(a.off+12, "CompressionFormat", a.flags, "only LZNT1 in units of up to 64 KiB is read")
	}
	return &compressed{s: s, unit: f.b.cluster << a.unit}, nil
}

// plain is content that lies as it reads.
type plain stream

func (o *plain) Size() int64 { return o.a.size }

// ReadAt implements fs.File: a read of the device for each run.
func (o *plain) ReadAt(p []byte, off int64) (int, error) {
	return (*stream)(o).readAt(o.f.dev, p, off)
}

// Extents implements fs.File. Clusters are never shared.
func (o *plain) Extents(off, n int64, fn func(fs.Extent) error) error {
	if off < 0 || n < 0 {
		return lun.ErrOutOfRange
	}
	for n = min(n, max(0, o.a.size-off)); n > 0; {
		at, same, kind, err := (*stream)(o).find(off, n)
		if err != nil {
			return err
		}
		if err := fn(fs.Extent{Off: off, Len: same, Kind: kind, Device: at}); err != nil {
			return err
		}
		off, n = off+same, n-same
	}
	return nil
}

// resident is content that a record holds.
type resident []byte

func (o resident) Size() int64 { return int64(len(o)) }

func (o resident) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, lun.ErrOutOfRange
	}
	n := 0
	if off < int64(len(o)) {
		n = copy(p, o[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (o resident) Extents(off, n int64, fn func(fs.Extent) error) error {
	if off < 0 || n < 0 {
		return lun.ErrOutOfRange
	}
	if n = min(n, max(0, o.Size()-off)); n == 0 {
		return nil
	}
	return fn(fs.Extent{Off: off, Len: n, Kind: fs.Encoded})
}
