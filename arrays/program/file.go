package program

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cleave-san/cleave/lun"
)

// file is a file or block device of this host, for reading.
type file struct {
	f    *os.File
	size int64
}

func openFile(path string) (*file, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("path %.200q is not absolute", path)
	}
	// Without waiting: a pipe has no writer, and is refused below.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() && fi.Mode().Type() != os.ModeDevice {
		err = fmt.Errorf("%s is neither a file nor a block device", path)
	}
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{f, size}, nil
}

func (d *file) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	return d.f.ReadAt(p, off)
}

func (d *file) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (d *file) Size() int64                        { return d.size }
func (d *file) Sync() error                        { return nil }
func (d *file) Close() error                       { return d.f.Close() }
func (d *file) File() *os.File                     { return d.f }
