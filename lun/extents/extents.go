// Package extents tells what of a device are holes, for devices that are made of
// others: each run is asked of the device that it is read from.
//
// A hole always reads as zeroes; what nothing is known of is data. What is told of
// a device that is being written is true of some moment during the call.
package extents

import (
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// As calls fn for the runs of the n bytes at byte at of d (see lun.Mapper), as if
// they lay at off. Of a device that has no map, all is data.
func As(d lun.Device, at, n, off int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(at, n, d.Size()); err != nil || n == 0 {
		return err
	}
	m, ok := d.(lun.Mapper)
	if !ok {
		return fn(lun.Extent{Off: off, Len: n})
	}
	return m.Extents(at, n, func(e lun.Extent) error {
		e.Off += off - at
		return fn(e)
	})
}

// Pieces calls fn for the runs of [off, off+n) of a device of which next says what
// reads byte off, where in that, and for how many bytes. No source means data.
func Pieces(off, n int64, next func(off int64) (src lun.Device, at, run int64), fn func(lun.Extent) error) error {
	for end := off + n; off < end; {
		src, at, run := next(off)
		if run = min(run, end-off); run <= 0 {
			return fmt.Errorf("nothing is known of byte %d", off)
		}
		err := error(nil)
		if src == nil {
			err = fn(lun.Extent{Off: off, Len: run})
		} else {
			err = As(src, at, run, off, fn)
		}
		if err != nil {
			return err
		}
		off += run
	}
	return nil
}
