package fat

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/cached"
)

const (
	// cacheSize bounds the metadata that is kept, in bytes.
	cacheSize = 8 << 20
	// rootRef is the root's number: no entry is there.
	rootRef = 1
)

// FS is a FAT file system.
type FS struct {
	s    *super
	dev  lun.Device
	meta *cached.Reader
}

var _ fs.FS = (*FS)(nil)

// Open opens the file system that dev holds from its first byte on. The error is
// lun.ErrNotFormat where there is none, and a *lun.FormatError where it is
// damaged or uses what isn't read.
func Open(dev lun.Device) (*FS, error) {
	if dev.Size() < 512 {
		return nil, lun.ErrNotFormat
	}
	f := &FS{dev: dev, meta: cached.New(dev, dev.Size(), cacheSize)}
	b := make([]byte, 512)
	if _, err := f.meta.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("fat boot sector: %w", err)
	}
	var err error
	if f.s, err = parseSuper(b, dev.Size()); err != nil {
		return nil, err
	}
	if f.s.bits == 32 && !f.s.has(f.s.rootAt) {
		return nil, damaged(44, "BPB_RootClus", f.s.rootAt, "there is no such cluster")
	}
	if err := f.readFlags(); err != nil {
		return nil, err
	}
	return f, nil
}

// readFlags adds what the entry of cluster 1 says of the last unmount, as Windows
// keeps it, to what the boot sector says, as Linux does.
func (f *FS) readFlags() error {
	b, s := make([]byte, 4), f.s
	if s.bits == 12 {
		return nil // it has no room for them
	}
	if _, err := f.meta.ReadAt(b[:s.bits/8], s.fat+int64(s.bits/8)); err != nil {
		return fmt.Errorf("fat: entry of cluster 1: %w", err)
	}
	clean, sound := uint32(1)<<15, uint32(1)<<14
	if s.bits == 32 {
		clean, sound = 1<<27, 1<<26
	}
	n := le.Uint32(b)
	s.dirty = s.dirty || n&clean == 0
	s.failed = s.failed || n&sound == 0
	return nil
}

// Info implements fs.FS.
func (f *FS) Info() fs.Info {
	s := f.s
	i := fs.Info{Kind: "fat", Variant: fmt.Sprintf("FAT%d", s.bits), Label: s.label, Size: s.size, BlockSize: int(s.cluster),
		UUID: fmt.Sprintf("%04X-%04X", s.serial>>16, s.serial&0xFFFF)}
	if s.dirty {
		i.Warnings = append(i.Warnings, errors.New("fat: it was not unmounted: files that were being written may be incomplete or have a wrong length"))
	}
	if s.failed {
		i.Warnings = append(i.Warnings, errors.New("fat: its host met errors of the disk and wants it to be checked"))
	}
	return i
}

// Root implements fs.FS.
func (f *FS) Root() fs.Ref { return fs.Ref{Inode: rootRef} }

// next is the cluster after one, 0 at the end of a chain.
func (f *FS) next(c uint32) (uint32, error) {
	s := f.s
	at := s.fat + int64(c)*int64(s.bits)/8
	b := make([]byte, 4)
	if _, err := f.meta.ReadAt(b[:max(2, s.bits/8)], at); err != nil {
		return 0, fmt.Errorf("fat: entry of cluster %d: %w", c, err)
	}
	n := le.Uint32(b)
	if s.bits == 12 {
		n = n >> (4 * (c & 1)) & 0xFFF
	}
	n &= 1<<min(s.bits, 28) - 1
	if n >= 1<<min(s.bits, 28)-8 {
		return 0, nil
	}
	if !s.has(n) {
		return 0, damaged(at, "FAT", n, fmt.Sprintf("cluster %d is followed by none that there is", c))
	}
	return n, nil
}

// run is clusters of a chain that follow each other on the device.
type run struct {
	at, off, n int64 // byte on the device, in the file; bytes
}

// runs are those of a chain, of up to size bytes, or a directory's, of any. A chain
// that returns to itself, or of a directory that is longer than any, is damage.
// With clusters of 512 bytes a file can have 8 million runs, of 24 bytes each,
// if the device has as many.
func (f *FS) runs(first uint32, size int64) ([]run, error) {
	var out []run
	s, off := f.s, int64(0)
	for c, count := first, uint32(0); c != 0 && (size < 0 || off < size); count++ {
		if count == s.clusters || !s.has(c) {
			return nil, damaged(-1, "FAT", first, "a chain of clusters returns to itself or begins nowhere")
		}
		if k := len(out) - 1; k >= 0 && out[k].at+out[k].n == s.at(c) {
			out[k].n += s.cluster
		} else {
			out = append(out, run{s.at(c), off, s.cluster})
		}
		if off += s.cluster; size < 0 && off > maxDir+s.cluster {
			return nil, damaged(-1, "FAT", first, "no directory has that many clusters")
		}
		var err error
		if c, err = f.next(c); err != nil {
			return nil, err
		}
	}
	if off < size {
		return nil, damaged(-1, "FAT", first, fmt.Sprintf("a chain of clusters has %d bytes of a file of %d", off, size))
	}
	return out, nil
}
