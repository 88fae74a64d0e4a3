package open

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// NotWritableError says that not all of what is to be written in place can be:
// the container has no block of its own for it, or is only read.
type NotWritableError struct {
	Disk              string // its name
	Extents, Refused  int    // asked for, and those of them that can't be written
	Bytes, BytesShort int64  // in them
	First             int64  // where the first one refused begins
	Err               error  // why: vdisk.ErrNotAllocated or lun.ErrReadOnly
}

func (e *NotWritableError) Error() string {
	return fmt.Sprintf("%s: %d of %d extents (%d of %d bytes) can't be written in place, the first at byte %d: %v",
		e.Disk, e.Refused, e.Extents, e.BytesShort, e.Bytes, e.First, e.Err)
}

func (e *NotWritableError) Unwrap() error { return e.Err }

// CheckWritable asks, before anything is written, whether Device takes writes to
// all of the extents, and writes nothing. What it would refuse is counted in a
// *NotWritableError; any other error is of reading the container's tables. A
// disk that is no container has room for every block, unless it is a file on a
// host's volume.
func (d *Disk) CheckWritable(extents []lun.Extent) error {
	v, ok := d.Device.(vdisk.Writabler)
	if !ok {
		return nil
	}
	e := &NotWritableError{Disk: d.Name, Extents: len(extents)}
	for _, x := range extents {
		e.Bytes += x.Len
		err := v.Writable(x.Off, x.Len)
		switch {
		case err == nil:
			continue
		case !errors.Is(err, vdisk.ErrNotAllocated) && !errors.Is(err, lun.ErrReadOnly):
			return fmt.Errorf("%s: %w", d.Name, err)
		case e.Refused == 0:
			e.First, e.Err = x.Off, err
		}
		e.Refused++
		e.BytesShort += x.Len
	}
	if e.Refused == 0 {
		return nil
	}
	return e
}
