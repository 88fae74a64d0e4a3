package fat

import (
	"fmt"
	"io"
	"sort"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// file is the content of a regular file.
type file struct {
	f    *FS
	size int64
	runs []run
}

// Open implements fs.FS. The chain of clusters is followed here.
func (f *FS) Open(r fs.Ref) (fs.File, error) {
	e, err := f.get(r)
	switch {
	case err != nil:
		return nil, err
	case e.dir():
		return nil, fmt.Errorf("fat %v: %w", r, fs.ErrNotFile)
	}
	runs, err := f.runs(e.cluster, e.size)
	if err != nil {
		return nil, fmt.Errorf("fat %v: %w", r, err)
	}
	return &file{f, e.size, runs}, nil
}

func (o *file) Size() int64 { return o.size }

// ReadAt implements fs.File: a read of the device for each run.
func (o *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, lun.ErrOutOfRange
	}
	done := 0
	err := o.Extents(off, int64(len(p)), func(e fs.Extent) error {
		k, err := o.f.dev.ReadAt(p[done:done+int(e.Len)], e.Device)
		done += k
		return err
	})
	if err == nil && done < len(p) {
		err = io.EOF
	}
	return done, err
}

// Extents implements fs.File. There are neither holes nor shared clusters.
func (o *file) Extents(off, n int64, fn func(fs.Extent) error) error {
	if off < 0 || n < 0 {
		return lun.ErrOutOfRange
	}
	n = min(n, max(0, o.size-off))
	for i := sort.Search(len(o.runs), func(i int) bool { return o.runs[i].off+o.runs[i].n > off }); n > 0; i++ {
		r := o.runs[i]
		k := min(n, r.off+r.n-off)
		if err := fn(fs.Extent{Off: off, Len: k, Kind: fs.Data, Device: r.at + off - r.off}); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Readlink implements fs.FS: there are none.
func (f *FS) Readlink(r fs.Ref) (string, error) {
	if _, err := f.get(r); err != nil {
		return "", err
	}
	return "", fmt.Errorf("fat %v: %w", r, fs.ErrNotLink)
}

// Xattrs implements fs.FS: there are none.
func (f *FS) Xattrs(r fs.Ref, _ func(string, []byte) error) error {
	_, err := f.get(r)
	return err
}
