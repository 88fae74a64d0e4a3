package xfs

import (
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// file is the content of a regular file.
type file struct {
	f *FS
	n *inode
}

// Open implements fs.FS.
func (f *FS) Open(r fs.Ref) (fs.File, error) {
	n, err := f.get(r)
	switch {
	case err != nil:
		return nil, err
	case n.kind() != fs.Regular:
		return nil, fmt.Errorf("xfs %v: %w", r, fs.ErrNotFile)
	case n.flags&flagRealtime != 0:
		return nil, damaged(n.at+90, "di_flags", "realtime", fmt.Sprintf("inode %d: its data is on a realtime device, which is not read here", n.number))
	}
	return &file{f, n}, nil
}

func (o *file) Size() int64 { return o.n.size }

// ReadAt implements fs.File: a read of the device for each run.
func (o *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, lun.ErrOutOfRange
	}
	done := 0
	want := int(min(int64(len(p)), max(0, o.n.size-off)))
	for done < want {
		at, n, kind, err := o.find(off+int64(done), int64(want-done))
		if err != nil {
			return done, err
		}
		part := p[done : done+int(n)]
		if kind != fs.Data {
			clear(part)
		} else if k, err := o.f.dev.ReadAt(part, at); err != nil {
			return done + k, fmt.Errorf("xfs inode %d: %w", o.n.number, err)
		}
		done += int(n)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// find tells of up to n bytes of the file what they are, and where.
func (o *file) find(off, n int64) (at, same int64, kind fs.Kind, err error) {
	size := o.f.s.blockSize
	block := uint64(off / size)
	r, err := o.f.run(o.n, &o.n.data, block)
	if err != nil {
		return 0, 0, 0, err
	}
	left := r.from + r.n - block // blocks
	if left <= uint64(n/size)+1 {
		n = min(n, int64(left)*size-off%size)
	}
	if r.kind == fs.Hole {
		return 0, n, r.kind, nil
	}
	return r.at + int64(block-r.from)*size + off%size, n, r.kind, nil
}

// Extents implements fs.File. Of a file that was ever cloned, all is said to be
// shared: what is not any more is known only to a tree that isn't read.
func (o *file) Extents(off, n int64, fn func(fs.Extent) error) error {
	if off < 0 || n < 0 {
		return lun.ErrOutOfRange
	}
	for n = min(n, max(0, o.n.size-off)); n > 0; {
		at, same, kind, err := o.find(off, n)
		if err != nil {
			return err
		}
		e := fs.Extent{Off: off, Len: same, Kind: kind, Device: at, Shared: kind != fs.Hole && o.n.flags2&flag2Reflink != 0}
		if err := fn(e); err != nil {
			return err
		}
		off, n = off+same, n-same
	}
	return nil
}

const (
	linkMagic  = 0x58534C4D // "XSLM"
	linkHeader = 56
	maxTarget  = 1024 // XFS_SYMLINK_MAXLEN
)

// Readlink implements fs.FS.
func (f *FS) Readlink(r fs.Ref) (string, error) {
	n, err := f.get(r)
	switch {
	case err != nil:
		return "", err
	case n.kind() != fs.Symlink:
		return "", fmt.Errorf("xfs %v: %w", r, fs.ErrNotLink)
	case n.size == 0 || n.size > maxTarget:
		return "", damaged(n.at+56, "di_size", n.size, fmt.Sprintf("inode %d: no symbolic link has a target of that length", n.number))
	}
	if n.data.format != formatLocal {
		return f.remoteTarget(n)
	}
	if n.size > int64(len(n.data.raw)) {
		return "", damaged(n.at+56, "di_size", n.size, fmt.Sprintf("inode %d: the target is longer than its place", n.number))
	}
	return string(n.data.raw[:n.size]), nil
}

// remoteTarget puts a target together: of version 5 each extent has a header.
func (f *FS) remoteTarget(n *inode) (string, error) {
	var out []byte
	for block := uint64(0); int64(len(out)) < n.size; {
		r, err := f.run(n, &n.data, block)
		if err != nil {
			return "", err
		}
		if r.kind != fs.Data || r.from != block || int64(r.n)*f.s.blockSize > 64<<10 {
			return "", damaged(n.at, "br_startoff", r.from, fmt.Sprintf("inode %d: the target is not in its blocks", n.number))
		}
		b := make([]byte, int64(r.n)*f.s.blockSize)
		if _, err := f.meta.ReadAt(b, r.at); err != nil {
			return "", fmt.Errorf("xfs inode %d: %w", n.number, err)
		}
		if f.s.v5 {
			if err := f.verify(b, r.at, linkFields, n.number); err != nil {
				return "", err
			}
			offset, size := be.Uint32(b[4:]), be.Uint32(b[8:])
			if be.Uint32(b) != linkMagic || int(offset) != len(out) || size == 0 || int64(size) > int64(len(b)-linkHeader) {
				return "", damaged(r.at, "sl_bytes", size, fmt.Sprintf("is no part of the target of inode %d", n.number))
			}
			b = b[linkHeader : linkHeader+size]
		}
		out = append(out, b[:min(int64(len(b)), n.size-int64(len(out)))]...)
		block = r.from + r.n
	}
	return string(out), nil
}
