package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrNoClone says that a file system can't share one file's blocks with
// another: it has no reflinks.
var ErrNoClone = errors.New("the file system has no reflinks")

// Cloner is a File whose content can be made another's without copying it.
type Cloner interface {
	// CloneFrom makes the file's content that of src: in one step, sharing
	// src's blocks, of which each of the two gets a copy of its own when it
	// writes to it (FICLONE, ioctl_ficlone(2)). It first writes out what was
	// written to src and never synced, which takes the time that takes.
	// Writes to src meanwhile may be in the file or not, in any order: the
	// caller keeps them away.
	//
	// The content is stable once Sync of this file has returned, whether src
	// was ever synced or not. A crash before that may leave any part of it.
	// ErrNoClone where the two files can't share blocks.
	CloneFrom(src File) error
}

// Clone is dst's CloneFrom; ErrNoClone if dst is no Cloner.
func Clone(dst, src File) error {
	c, ok := dst.(Cloner)
	if !ok {
		return fmt.Errorf("clone of %s: %w", src.Name(), ErrNoClone)
	}
	return c.CloneFrom(src)
}

func (f *osFile) CloneFrom(src File) error {
	defer f.known.Forget()
	from := src.OS()
	if from == nil {
		return fmt.Errorf("clone of %s: %w", src.Name(), ErrNoClone)
	}
	c, err := from.SyscallConn()
	if err != nil {
		return err
	}
	cerr := c.Control(func(srcFD uintptr) {
		err = f.call("clone", func(fd int) error { return unix.IoctlFileClone(fd, int(srcFD)) })
	})
	if cerr != nil {
		return cerr
	}
	return noClone(err)
}

// noClone adds ErrNoClone to the errors by which a kernel says the same.
func noClone(err error) error {
	for _, no := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS, unix.EXDEV, unix.EINVAL} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: %w", ErrNoClone, err)
		}
	}
	return err
}

// The two files of CanClone. They are there for no longer than the call, unless
// a crash ends it.
const (
	probeFrom = ".cleave-clone-from"
	probeTo   = ".cleave-clone-to"
)

// CanClone finds out whether files in dir can be cloned, by doing it: a small
// file is made, cloned and written to, and the clone has to hold what was there
// before. nil if it does; ErrNoClone if the file system can't; another error
// leaves it open. Two calls for one directory must not overlap.
func CanClone(fs FS, dir string) (err error) {
	open := func(name string) (File, error) {
		return fs.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	}
	from, err := open(probeFrom)
	if err != nil {
		return err
	}
	defer func() {
		from.Close()
		err = errors.Join(err, fs.Remove(from.Name()))
	}()
	if _, ok := from.(Cloner); !ok {
		return ErrNoClone
	}
	to, err := open(probeTo)
	if err != nil {
		return err
	}
	defer func() {
		to.Close()
		err = errors.Join(err, fs.Remove(to.Name()))
	}()
	before, after := bytes.Repeat([]byte{0x5a}, 8192), bytes.Repeat([]byte{0xa5}, 4096)
	if _, err := from.WriteAt(before, 0); err != nil {
		return err
	}
	if err := Clone(to, from); err != nil {
		return err
	}
	if _, err := from.WriteAt(after, 0); err != nil {
		return err
	}
	got := make([]byte, len(before))
	if _, err := to.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, before) {
		return fmt.Errorf("%w that can be relied on: a clone in %s changed with its origin", ErrNoClone, dir)
	}
	return nil
}

var _ Cloner = (*osFile)(nil)
