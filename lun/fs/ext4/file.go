package ext4

import (
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// file is the content of anything that has blocks.
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
		return nil, fmt.Errorf("ext4 %v: %w", r, fs.ErrNotFile)
	case n.has(flagEncrypt):
		return nil, fmt.Errorf("ext4 %v: %w", r, fs.ErrEncrypted)
	}
	return f.content(n)
}

// content is a file's, or inline data as a file.
func (f *FS) content(n *inode) (fs.File, error) {
	if !n.has(flagInline) {
		return &file{f, n}, nil
	}
	b, err := f.inline(n)
	if err != nil {
		return nil, err
	}
	return &inlineFile{b, n.size}, nil
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
		from := off + int64(done)
		at, n, kind, err := o.find(from, int64(want-done))
		if err != nil {
			return done, err
		}
		part := p[done : done+int(n)]
		if kind != fs.Data {
			clear(part)
		} else if k, err := o.f.dev.ReadAt(part, at); err != nil {
			return done + k, fmt.Errorf("ext4 inode %d: %w", o.n.number, err)
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
	r, err := o.f.run(o.n, block)
	if err != nil {
		return 0, 0, 0, err
	}
	left := r.from + r.n - block // blocks
	if left <= uint64(n/size)+1 {
		n = min(n, int64(left)*size-off%size)
	}
	return int64(r.at+block-r.from)*size + off%size, n, r.kind, nil
}

// Extents implements fs.File. What a journal holds is told where it lies there.
func (o *file) Extents(off, n int64, fn func(fs.Extent) error) error {
	if off < 0 || n < 0 {
		return lun.ErrOutOfRange
	}
	for n = min(n, max(0, o.n.size-off)); n > 0; {
		at, same, kind, err := o.find(off, n)
		if err != nil {
			return err
		}
		e := fs.Extent{Off: off, Len: same, Kind: kind}
		if kind != fs.Hole {
			e.Device = at
		}
		if kind == fs.Data && o.f.view != nil {
			var encoded bool
			if e.Device, e.Len, encoded = o.f.view.Moved(at, same); encoded {
				e.Kind, e.Device = fs.Encoded, 0
			}
			e.Shared = e.Kind == fs.Data && e.Device != at
		}
		if err := fn(e); err != nil {
			return err
		}
		off, n = off+e.Len, n-e.Len
	}
	return nil
}

// inlineFile is a file whose content is in its inode. What isn't there is zero.
type inlineFile struct {
	b    []byte
	size int64
}

func (o *inlineFile) Size() int64 { return o.size }

func (o *inlineFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, lun.ErrOutOfRange
	}
	n := int(min(int64(len(p)), max(0, o.size-off)))
	clear(p[:n])
	if off < int64(len(o.b)) {
		copy(p[:n], o.b[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (o *inlineFile) Extents(off, n int64, fn func(fs.Extent) error) error {
	if off < 0 || n < 0 {
		return lun.ErrOutOfRange
	}
	if n = min(n, max(0, o.size-off)); n == 0 {
		return nil
	}
	return fn(fs.Extent{Off: off, Len: n, Kind: fs.Encoded})
}

// Readlink implements fs.FS.
func (f *FS) Readlink(r fs.Ref) (string, error) {
	n, err := f.get(r)
	switch {
	case err != nil:
		return "", err
	case n.kind() != fs.Symlink:
		return "", fmt.Errorf("ext4 %v: %w", r, fs.ErrNotLink)
	case n.has(flagEncrypt):
		return "", fmt.Errorf("ext4 %v: %w", r, fs.ErrEncrypted)
	case n.size == 0 || n.size > min(f.s.blockSize, fs.MaxTarget):
		return "", damaged(-1, "i_size", n.size, fmt.Sprintf("inode %d: no symbolic link has a target of that length", n.number))
	}
	if !n.has(flagInline) && f.fast(n) {
		if n.size >= 60 {
			return "", damaged(-1, "i_size", n.size, fmt.Sprintf("inode %d: the symbolic link has no block", n.number))
		}
		return string(n.blocks()[:n.size]), nil
	}
	c, err := f.content(n)
	if err != nil {
		return "", err
	}
	b := make([]byte, n.size)
	if k, err := c.ReadAt(b, 0); k < len(b) {
		return "", err
	}
	return string(b), nil
}

// fast tells whether a symbolic link's target is in the inode:
// ext4_inode_is_fast_symlink().
func (f *FS) fast(n *inode) bool {
	if f.s.incompat&incompatEAInode != 0 {
		return n.size < 60
	}
	blocks := f.allocated(n)
	if n.acl != 0 {
		blocks -= f.s.clusterSize
	}
	return blocks == 0
}
