package extents

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
	"syscall"

	"github.com/cleave-san/cleave/lun"
)

// Values of whence, lseek(2).
const (
	seekData = 3
	seekHole = 4
)

// File tells the runs of files of this host that it is asked of once.
func File(f *os.File, off, n int64, fn func(lun.Extent) error) error {
	return new(FileMap).Extents(f, off, n, fn)
}

// FileMap tells the runs of one file of this host. It remembers the last run of
// data: SEEK_HOLE has no limit to how far it looks, and on tmpfs it looks at every
// page, 13 ms for a wholly written GiB, which an initiator that asks before each of
// its first reads would pay for each.
//
// Zero value is ready. Its methods may be called at once.
type FileMap struct {
	mu   sync.Mutex
	data lun.Extent
}

// Forget is to be called after anything that may have made a hole. It waits for a
// call that looks just now; one that comes later sees the hole.
func (m *FileMap) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = lun.Extent{}
}

// Extents calls fn for the runs of [off, off+n) of the file, which must not end
// before. What it does not tell, as a block device doesn't, is data. The file's own
// offset moves.
func (m *FileMap) Extents(f *os.File, off, n int64, fn func(lun.Extent) error) error {
	for end := off + n; off < end; {
		x, err := m.at(f, off)
		if err != nil {
			return fmt.Errorf("map of %s: %w", f.Name(), err)
		}
		x.Len = min(x.Len, end-off)
		if err := fn(x); err != nil {
			return err
		}
		off += x.Len
	}
	return nil
}

// at is the run that begins at off.
func (m *FileMap) at(f *os.File, off int64) (lun.Extent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if end := m.data.Off + m.data.Len; m.data.Off <= off && off < end {
		return lun.Extent{Off: off, Len: end - off}, nil
	}
	data, err := seek(f, off, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO): // nothing but a hole up to the end of the file
		return lun.Extent{Off: off, Len: math.MaxInt64 - off, Hole: true}, nil
	case errors.Is(err, syscall.EINVAL): // it has no map
		return lun.Extent{Off: off, Len: math.MaxInt64 - off}, nil
	case err != nil:
		return lun.Extent{}, err
	case data > off:
		return lun.Extent{Off: off, Len: data - off, Hole: true}, nil
	}
	hole, err := seek(f, off, seekHole)
	if err != nil {
		return lun.Extent{}, err
	}
	if hole <= off { // trimmed between the two calls
		return lun.Extent{Off: off, Len: 4096}, nil
	}
	m.data = lun.Extent{Off: off, Len: hole - off}
	return m.data, nil
}

// seek is the offset of the next data or hole from off.
func seek(f *os.File, off int64, whence int) (int64, error) {
	for {
		at, err := f.Seek(off, whence)
		switch {
		case errors.Is(err, syscall.EINTR): // of a file system in a process, say
		case errors.Is(err, fs.ErrClosed):
			return 0, lun.ErrClosed
		default:
			return at, err
		}
	}
}
