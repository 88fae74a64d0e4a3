package ntfs

import (
	"bytes"
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun/fs"
)

// Of a restart area: nobody has the log open, or all that it holds is in its place.
const (
	noClient      = 0xFFFF
	volumeIsClean = 0x2
)

// checkLog wants a log that nothing has to be replayed of: LFS_RESTART_PAGE_HEADER
// and LFS_RESTART_AREA, of which there are two, the one with the greater LSN valid.
// Windows writes a clean one at an unmount, and into a shadow copy.
func (f *FS) checkLog() error {
	n, err := f.inode(recordLog)
	if err != nil {
		return err
	}
	a := n.find(typeData, "")
	if a == nil || a.resident() {
		return n.damaged(0, "$DATA", nil, "the log has no clusters")
	}
	s, err := f.stream(a)
	if err != nil {
		return err
	}
	first := make([]byte, 512)
	if _, err := s.readAt(f.meta, first, 0); err != nil {
		return err
	}
	page := int64(4096)
	if size := int64(le.Uint32(first[16:])); restartMagic(first) && power(size, 512, 64<<10) {
		page = size
	}
	empty, found, clean, lsn := true, false, false, uint64(0)
	for i := range int64(2) {
		b := make([]byte, page)
		if _, err := s.readAt(f.meta, b, i*page); err != nil && err != io.EOF {
			return err
		}
		empty = empty && len(bytes.TrimLeft(b, "\xff")) == 0
		current, ok, isClean := restartArea(b)
		if ok && (!found || current > lsn) {
			found, lsn, clean = true, current, isClean
		}
	}
	switch {
	case found && clean:
		return nil
	case found:
		return fmt.Errorf("%w: read a shadow copy of it, or let Windows unmount it", fs.ErrDirty)
	case empty:
		return nil // as a new volume has it, and as NTFS-3G leaves it
	}
	return damaged(-1, "LFS_RESTART_PAGE_HEADER", nil, "neither restart page of the log is whole")
}

func restartMagic(b []byte) bool { return string(b[:4]) == "RSTR" || string(b[:4]) == "CHKD" }

// restartArea is what a restart page says: its LSN, whether it is one, and whether
// the log is clean.
func restartArea(b []byte) (lsn uint64, ok, clean bool) {
	if !restartMagic(b) || fixup(b, 0, string(b[:4])) != nil {
		return 0, false, false
	}
	at := int(le.Uint16(b[24:]))
	if at < 30 || at > len(b)-48 {
		return 0, false, false
	}
	area := b[at:]
	inUse, flags := le.Uint16(area[12:]), le.Uint16(area[14:])
	return le.Uint64(area), true, inUse == noClient || flags&volumeIsClean != 0
}
