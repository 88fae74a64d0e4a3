// Package disk is the file system as the embedded array sees it: the few calls
// it makes, as interfaces, so that a test can put a layer underneath that cuts
// the power between any two of them.
//
// What the array relies on, and what such a layer may take away:
//
//   - what a File's Sync covered is on the disk; what was written since may be
//     there, in part, in any order, or not at all;
//   - a name made, renamed or removed is on the disk after SyncDir of its
//     directory, and either wholly there or not before;
//   - a rename replaces its target in one step;
//   - a clone, where there are reflinks (see Cloner), is a write of the whole
//     file: it is on the disk once Sync covered it.
package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cleave-san/cleave/lun"
)

// ErrLocked says that another process holds a lock.
var ErrLocked = errors.New("locked by another process")

// ErrUncertain says that a change was made and may not be stable: a crash may
// bring back what was before.
var ErrUncertain = errors.New("may not be stable")

// FS is a file system. Its methods may be called at once from several
// goroutines; their errors are those of package os and name the path.
type FS interface {
	// OpenFile opens name with the flags of package os. Files are made with
	// mode 0600, since they hold other people's disks.
	OpenFile(name string, flag int) (File, error)
	// Mkdir makes one directory with mode 0700.
	Mkdir(name string) error
	Rename(from, to string) error
	Remove(name string) error
	// ReadDir lists the names in a directory, sorted.
	ReadDir(name string) ([]string, error)
	// Stat describes the file that name leads to now.
	Stat(name string) (os.FileInfo, error)
	// SyncDir makes the names in a directory stable.
	SyncDir(name string) error
	// Lock takes an exclusive lock on the file name, which it makes if it is
	// not there, and holds it until Close or the end of the process. It does
	// not wait: ErrLocked.
	Lock(name string) (io.Closer, error)
	// Space is the size of the file system under a directory and what is free
	// of it for us, in bytes.
	Space(dir string) (size, free int64, err error)
}

// File is an open file. ReadAt, WriteAt, PunchHole, Zero, Extents and Sync may
// be called at once.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Name() string
	Stat() (os.FileInfo, error)
	Truncate(size int64) error
	// Sync makes data, and the metadata that is needed to read it back, stable
	// (fdatasync(2)).
	Sync() error
	// PunchHole releases a range, which reads as zeroes afterwards.
	PunchHole(off, n int64) error
	// Zero makes a range read as zeroes and keeps its space.
	Zero(off, n int64) error
	// Extents is lun.Mapper's.
	Extents(off, n int64, fn func(lun.Extent) error) error
	// OS is the file's descriptor, nil where it has none.
	OS() *os.File
}

// ReadFile reads a whole file of at most limit bytes.
func ReadFile(fs FS, name string, limit int64) ([]byte, error) {
	f, err := fs.OpenFile(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes, refusing to read it", name, limit)
	}
	return b, nil
}

// NewSuffix is what Replace adds to a name for the file that it writes first,
// and that a crash may leave behind. The next Replace of the name removes it.
const NewSuffix = ".new"

// Replace puts data in place of what name held, or makes it. After a crash at
// any point name holds the old content or the new, never a part of either. The
// new content is stable when Replace returns nil. After an error the old
// content is there, unless the error is ErrUncertain. Two calls for one name
// must not overlap.
func Replace(fs FS, name string, data []byte) error {
	tmp := name + NewSuffix
	f, err := fs.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fs.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, fs.Remove(tmp))
	}
	if err := fs.SyncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("%s %w: %w", name, ErrUncertain, err)
	}
	return nil
}

// MkdirAll makes a directory and its parents, each stable before the next.
func MkdirAll(fs FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := MkdirAll(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.Mkdir(dir); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return fs.SyncDir(parent)
}
