package vdisk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/cleave-san/cleave/lun"
)

// Resolver opens the files that headers name. Names come from a stranger and
// may be anything: absolute paths, "../../etc/shadow", "nbd://host", "json:{…}".
// The container passes them on as they are; what they may reach is the
// resolver's decision alone.
type Resolver interface {
	// Resolve opens name. With readOnly the device need not be writable.
	// The device belongs to who asked, and is closed if it is an io.Closer.
	Resolve(name string, readOnly bool) (lun.Device, error)
}

// ResolverFunc is a function as a Resolver.
type ResolverFunc func(name string, readOnly bool) (lun.Device, error)

// Resolve calls f.
func (f ResolverFunc) Resolve(name string, readOnly bool) (lun.Device, error) {
	return f(name, readOnly)
}

// maxName bounds a file name, as Linux does.
const maxName = 255

// Folder is the resolver for the regular files of one directory. Only plain
// names are opened: no path separators of any system, no "." or "..", no
// pseudo-protocols. A symbolic link is followed as long as it stays in the
// directory. It keeps nothing open between calls.
func Folder(dir string) Resolver {
	return ResolverFunc(func(name string, readOnly bool) (lun.Device, error) {
		if err := Plain(name); err != nil {
			return nil, err
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		mode := os.O_RDWR
		if readOnly {
			mode = os.O_RDONLY
		}
		// O_NONBLOCK: opening a pipe must not wait for its writer.
		f, err := root.OpenFile(name, mode|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = errors.New("is no regular file")
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &file{f: f, size: st.Size(), readOnly: readOnly}, nil
	})
}

// Plain says why a name is no plain file name, as Folder and resolvers of other
// folders demand; nil if it is one.
func Plain(name string) error {
	switch {
	case name == "", name == ".", name == "..":
		return errors.New("is no file name")
	case len(name) > maxName:
		return fmt.Errorf("is longer than %d bytes", maxName)
	case strings.ContainsAny(name, "/\\:\x00"):
		return errors.New("is not a plain name: only files of the same folder are opened")
	}
	return nil
}

// file is a regular file as a device. Its size is that when it was opened.
type file struct {
	f        *os.File
	size     int64
	readOnly bool
}

func (d *file) Size() int64    { return d.size }
func (d *file) File() *os.File { return d.f }
func (d *file) Close() error   { return d.f.Close() }

func (d *file) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	n, err := d.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s became shorter: %w", d.f.Name(), io.ErrUnexpectedEOF)
	}
	return n, err
}

func (d *file) WriteAt(p []byte, off int64) (int, error) {
	if d.readOnly {
		return 0, lun.ErrReadOnly
	}
	if err := lun.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	return d.f.WriteAt(p, off)
}

func (d *file) Sync() error {
	if d.readOnly {
		return nil
	}
	return d.f.Sync()
}
