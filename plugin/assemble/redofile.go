package assemble

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/redo"
)

// journalSuffix is what the name of a redo journal beside its disk ends with.
const journalSuffix = ".cleave-redo"

// redoFile is the file of a redo journal; nil is none.
type redoFile struct{ f *os.File }

// openRedoFile opens a redo journal's file, or makes it, for this process alone. Where
// none is named it is beside the first of the sources, if that is a file whose
// folder takes one; for a block device there is none, since /dev does not outlive a
// crash.
func openRedoFile(path string, sources []string) (*redoFile, error) {
	named := path != ""
	if !named {
		if st, err := os.Stat(sources[0]); isLUN(sources[0]) || err != nil || !st.Mode().IsRegular() {
			return nil, nil
		}
		path = sources[0] + journalSuffix
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if !named && (errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("redo journal: %w", err)
	}
	j := &redoFile{f}
	if err := j.check(sources); err != nil {
		return nil, errors.Join(fmt.Errorf("redo journal %s: %w", path, err), f.Close())
	}
	return j, nil
}

// check refuses what can't be a journal's file, and makes its name stable.
func (j *redoFile) check(sources []string) error {
	st, err := j.f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("is no regular file")
	}
	for _, path := range sources {
		if other, err := os.Stat(path); err == nil && os.SameFile(st, other) {
			return fmt.Errorf("is %s itself", path)
		}
	}
	if err := unix.Flock(int(j.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("is used by another process: %w", err)
	}
	dir, err := os.Open(filepath.Dir(j.f.Name()))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (j *redoFile) file() *os.File {
	if j == nil {
		return nil
	}
	return j.f
}

func (j *redoFile) path() string {
	if j == nil {
		return ""
	}
	return j.f.Name()
}

// close removes the file if no whole journal is in it, or that is needed no more.
func (j *redoFile) close(over bool) error {
	if j == nil {
		return nil
	}
	var err error
	if over || errors.Is(redo.Sealed(j.f), redo.ErrNone) {
		err = os.Remove(j.f.Name())
	}
	return errors.Join(err, j.f.Close())
}
