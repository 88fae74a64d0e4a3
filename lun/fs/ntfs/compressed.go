package ntfs

import (
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// maxUnit bounds what is compressed together, in bytes, as Windows does.
const maxUnit = 64 << 10

// compressed is content in units of clusters: one without a cluster is a hole, one
// with all of them lies as it reads, and one with some of them is compressed.
type compressed struct {
	s    *stream
	unit int64 // bytes
}

func (o *compressed) Size() int64 { return o.s.a.size }

// state tells what the unit is that begins at byte from, and how many of its
// clusters there are.
func (o *compressed) state(from int64) (fs.Kind, int64, error) {
	size := o.s.f.b.cluster
	vcn, have := from/size, int64(0)
	end := min(vcn+o.unit/size, o.s.clusters())
	for at := vcn; at < end; {
		r := o.s.run(at)
		n := min(end, r.vcn+r.n) - at
		if r.lcn >= 0 {
			if have != at-vcn {
				return 0, 0, o.s.a.where.damaged(o.s.a.off, "MappingPairs", at, "a unit of a compressed file has a hole in its middle")
			}
			have += n
		}
		at += n
	}
	switch {
	case have == 0 || from >= o.s.a.init:
		return fs.Hole, 0, nil
	case have*size == o.unit:
		return fs.Data, have, nil
	}
	return fs.Encoded, have, nil
}

// ReadAt implements fs.File. A unit that is read in parts is decompressed for each.
func (o *compressed) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, lun.ErrOutOfRange
	}
	var in, out []byte
	done, want := 0, int(min(int64(len(p)), max(0, o.Size()-off)))
	for done < want {
		from := (off + int64(done)) / o.unit * o.unit
		skip := off + int64(done) - from
		b := p[done : done+int(min(int64(want-done), o.unit-skip))]
		kind, have, err := o.state(from)
		switch {
		case err != nil:
			return done, err
		case kind == fs.Hole:
			clear(b)
		case kind == fs.Data:
			if k, err := o.s.readAt(o.s.f.dev, b, from+skip); k < len(b) {
				return done + k, err
			}
		default:
			if in == nil {
				in, out = make([]byte, o.unit), make([]byte, o.unit)
			}
			if err := o.unpack(in[:have*o.s.f.b.cluster], out, from); err != nil {
				return done, err
			}
			copy(b, out[skip:])
		}
		done += len(b)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// unpack reads a unit into in and decompresses it into out.
func (o *compressed) unpack(in, out []byte, from int64) error {
	size, at := o.s.f.b.cluster, int64(-1)
	for done := int64(0); done < int64(len(in)); {
		vcn := (from + done) / size
		r := o.s.run(vcn)
		n := min(int64(len(in))-done, (r.vcn+r.n-vcn)*size)
		where := (r.lcn + vcn - r.vcn) * size
		if _, err := o.s.f.dev.ReadAt(in[done:done+n], where); err != nil {
			return fmt.Errorf("ntfs record %d: %w", o.s.a.where.number, err)
		}
		if done += n; at < 0 {
			at = where
		}
	}
	if err := decompress(out, in); err != nil {
		return damaged(at, "LZNT1", nil, fmt.Sprintf("record %d, byte %d of the file: %v", o.s.a.where.base(), from, err))
	}
	// What was never written reads as zeroes.
	if left := o.s.a.init - from; left < int64(len(out)) {
		clear(out[left:])
	}
	return nil
}

// Extents implements fs.File.
func (o *compressed) Extents(off, n int64, fn func(fs.Extent) error) error {
	if off < 0 || n < 0 {
		return lun.ErrOutOfRange
	}
	for n = min(n, max(0, o.Size()-off)); n > 0; {
		from := off / o.unit * o.unit
		kind, _, err := o.state(from)
		if err != nil {
			return err
		}
		e := fs.Extent{Off: off, Len: min(n, from+o.unit-off), Kind: kind}
		switch kind {
		case fs.Data:
			if e.Device, e.Len, e.Kind, err = o.s.find(off, e.Len); err != nil {
				return err
			}
		case fs.Hole:
			e.Len = o.hole(off, n)
		}
		if err := fn(e); err != nil {
			return err
		}
		off, n = off+e.Len, n-e.Len
	}
	return nil
}

// hole is how far a hole goes that off is in: whole units of the run, at least one.
func (o *compressed) hole(off, n int64) int64 {
	from := off / o.unit * o.unit
	end := from + o.unit
	if off >= o.s.a.init {
		return n
	}
	size := o.s.f.b.cluster
	if r := o.s.run(from / size); r.lcn < 0 {
		end = max(end, (r.vcn+r.n)*size/o.unit*o.unit)
	}
	return min(n, end-off)
}
