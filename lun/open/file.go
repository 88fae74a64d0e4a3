package open

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/extents"
	"golang.org/x/sys/unix"
)

// FileDevice is a regular file or a block device of this host, opened for
// reading only.
type FileDevice struct {
	f       *os.File
	size    int64
	logical int
	holes   extents.FileMap
}

// File opens path read-only as a device.
func File(path string) (*FileDevice, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	d, err := FromFile(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// FromFile makes a device of a file that is open already, for a process that
// was handed a descriptor and may open nothing itself. Close closes f; after an
// error f stays the caller's.
func FromFile(f *os.File) (*FileDevice, error) {
	d, err := newFileDevice(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return d, nil
}

func newFileDevice(f *os.File) (*FileDevice, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &FileDevice{f: f, logical: 512}
	switch {
	case st.Mode().IsRegular():
		d.size = st.Size()
	case st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0:
		if d.size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, err
		}
		if n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err == nil && n >= 512 {
			d.logical = n
		}
	default:
		return nil, errors.New("is neither a file nor a block device")
	}
	return d, nil
}

func (d *FileDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	n, err := d.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s became shorter: %w", d.f.Name(), io.ErrUnexpectedEOF)
	}
	return n, err
}

// Extents implements lun.Mapper.
func (d *FileDevice) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, d.size); err != nil {
		return err
	}
	return d.holes.Extents(d.f, off, n, fn)
}

// Trimmed is to be called after anything that may have made a hole in the file.
func (d *FileDevice) Trimmed() { d.holes.Forget() }

func (d *FileDevice) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (d *FileDevice) Size() int64                        { return d.size }
func (d *FileDevice) Sync() error                        { return nil }
func (d *FileDevice) File() *os.File                     { return d.f }
func (d *FileDevice) Close() error                       { return d.f.Close() }
func (d *FileDevice) Blocks() (logical, physical int)    { return d.logical, max(d.logical, 4096) }
