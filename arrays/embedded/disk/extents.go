package disk

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
)

// allocated is a range of a file that has no hole, as far as it was found last.
// SEEK_HOLE has no limit to how far it looks, and on tmpfs it looks at every
// page: 13 ms for a wholly written GiB, which an initiator that asks before each
// of its first reads would pay for each.
//
// The lock is held over the seeks, as they move the descriptor's offset.
type allocated struct {
	sync.Mutex
	lun.Extent
}

// forget is called after anything that may have made a hole. What a seek found
// before that is gone then, and one that comes later sees the hole.
func (a *allocated) forget() {
	a.Lock()
	defer a.Unlock()
	a.Extent = lun.Extent{}
}

func (f *osFile) Extents(off, n int64, fn func(lun.Extent) error) error {
	for end := off + n; off < end; {
		x, err := f.extent(off)
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

// extent is what begins at off.
func (f *osFile) extent(off int64) (lun.Extent, error) {
	f.known.Lock()
	defer f.known.Unlock()
	if end := f.known.Off + f.known.Len; f.known.Off <= off && off < end {
		return lun.Extent{Off: off, Len: end - off}, nil
	}
	data, err := f.next(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // nothing but a hole up to the end of the file
		return lun.Extent{Off: off, Len: math.MaxInt64 - off, Hole: true}, nil
	case err != nil:
		return lun.Extent{}, err
	case data > off:
		return lun.Extent{Off: off, Len: data - off, Hole: true}, nil
	}
	hole, err := f.next(off, unix.SEEK_HOLE)
	if err != nil {
		return lun.Extent{}, err
	}
	if hole <= off { // made between the two calls
		return lun.Extent{Off: off, Len: 4096}, nil
	}
	f.known.Extent = lun.Extent{Off: off, Len: hole - off}
	return f.known.Extent, nil
}

// next is the offset of the next data or hole from off.
func (f *osFile) next(off int64, whence int) (at int64, err error) {
	err = f.call("seek", func(fd int) (err error) {
		at, err = unix.Seek(fd, off, whence)
		return err
	})
	return at, err
}
