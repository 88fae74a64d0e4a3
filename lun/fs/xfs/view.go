package xfs

import (
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun"
)

// viewPage is the unit in which a view keeps what differs from the device.
const viewPage = 4 << 10

// maxView bounds what a view keeps, in bytes.
const maxView = 512 << 20

// view is a device as it is once the log was recovered: read-only, and reads may
// come at once. While it is made, patch is called by one goroutine.
type view struct {
	dev   lun.Device
	size  int64 // of the file system
	pages map[int64][]byte
}

func (v *view) Size() int64                        { return v.dev.Size() }
func (v *view) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (v *view) Sync() error                        { return nil }

// ReadAt implements lun.Device: a read of the device for all that lies together
// there.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), v.dev.Size()); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		if page := v.pages[at/viewPage]; page != nil {
			done += copy(p[done:], page[at%viewPage:])
			continue
		}
		to := min(off+int64(len(p)), (at/viewPage+1)*viewPage)
		for to < off+int64(len(p)) && v.pages[to/viewPage] == nil {
			to = min(off+int64(len(p)), to+viewPage)
		}
		n, err := v.dev.ReadAt(p[done:done+int(to-at)], at)
		if done += n; err != nil {
			return done, err
		}
	}
	return len(p), nil
}

// touched reports whether anything of [off, off+n) may differ from the device.
func (v *view) touched(off, n int64) bool {
	if v == nil || len(v.pages) == 0 {
		return false
	}
	for page := off / viewPage; page*viewPage < off+n; page++ {
		if v.pages[page] != nil {
			return true
		}
	}
	return false
}

// patch shows p at off.
func (v *view) patch(p []byte, off int64) error {
	if err := lun.CheckRange(off, int64(len(p)), v.size); err != nil {
		return damaged(-1, "log", off, "changes what is not within the file system")
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		page := v.pages[at/viewPage]
		if page == nil {
			if int64(len(v.pages)+1)*viewPage > maxView {
				return fmt.Errorf("xfs: the log changes more than the %d MiB of metadata that are held here: attach it and mount it", maxView>>20)
			}
			page = make([]byte, viewPage)
			from := at / viewPage * viewPage
			if n, err := v.dev.ReadAt(page[:min(viewPage, v.dev.Size()-from)], from); err != nil && err != io.EOF {
				return fmt.Errorf("xfs log: %w", fmt.Errorf("byte %d: %w", from+int64(n), err))
			}
			v.pages[at/viewPage] = page
		}
		done += copy(page[at%viewPage:], p[done:])
	}
	return nil
}
