package recovery

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/extents"
	"github.com/cleave-san/cleave/lun/store/dmsnap"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// merged is a base device in which some areas read a snapshot instead, and some
// bytes are replaced. It is read-only and immutable after seal.
type merged struct {
	base      lun.Device
	redirects []redirected // by off; they never overlap
	patches   []patch      // by off; they never overlap
}

// redirected is an area of the base. look says what byte rel of it is read from:
// src at byte at, or the base itself (nil) at the same place; and for how many
// bytes, of which there are some.
type redirected struct {
	off, n int64
	look   func(rel int64) (src lun.Device, at, run int64)
}

// toStore redirects an area of a logical volume to its thick snapshot.
func toStore(a lvm2.Area, s *dmsnap.Store) redirected {
	return redirected{a.Off, a.Len, func(rel int64) (lun.Device, int64, int64) {
		lv, unit := a.Volume(rel)
		at, n, kept := s.Lookup(lv)
		n = min(n, unit)
		if !kept {
			return nil, 0, n
		}
		return s.COW(), at, n
	}}
}

type patch struct {
	off  int64
	data []byte
}

func (m *merged) patch(off int64, data []byte) { m.patches = append(m.patches, patch{off, data}) }

func (m *merged) seal() {
	slices.SortFunc(m.redirects, func(a, b redirected) int { return cmp.Compare(a.off, b.off) })
	slices.SortFunc(m.patches, func(a, b patch) int { return cmp.Compare(a.off, b.off) })
}

// apart refuses patches that share bytes, which a stranger's labels and headers
// can bring about: one of them would be lost. It is called after seal.
func (m *merged) apart() error {
	for i := 1; i < len(m.patches); i++ {
		a, b := m.patches[i-1], m.patches[i]
		if end := a.off + int64(len(a.data)); b.off < end {
			return &lun.FormatError{Format: "disk", Offset: b.off, Field: "metadata", Value: len(b.data),
				Reason: fmt.Sprintf("lies on other metadata, which ends at byte %d", end)}
		}
	}
	return nil
}

func (m *merged) Size() int64                        { return m.base.Size() }
func (m *merged) Sync() error                        { return nil }
func (m *merged) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

// Blocks are those of the base.
func (m *merged) Blocks() (logical, physical int) {
	if b, ok := m.base.(lun.Blocker); ok {
		return b.Blocks()
	}
	return 512, 512
}

func (m *merged) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	// Neighbouring runs that come from the base are read in one go.
	pending := 0
	flush := func(end int) error {
		if pending == end {
			return nil
		}
		_, err := m.base.ReadAt(p[pending:end], off+int64(pending))
		return err
	}
	for done := 0; done < len(p); {
		src, at, run := m.locate(off + int64(done))
		n := int(min(run, int64(len(p)-done)))
		if src != nil {
			if err := flush(done); err != nil {
				return pending, err
			}
			if _, err := src.ReadAt(p[done:done+n], at); err != nil {
				return done, err
			}
			pending = done + n
		}
		done += n
	}
	if err := flush(len(p)); err != nil {
		return pending, err
	}
	m.overwrite(p, off)
	return len(p), nil
}

// Extents implements lun.Mapper.
func (m *merged) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, m.Size()); err != nil {
		return err
	}
	return extents.Pieces(off, n, func(off int64) (lun.Device, int64, int64) {
		patched, run := m.patched(off)
		if patched {
			return nil, 0, run
		}
		src, at, n := m.locate(off)
		if src == nil {
			src, at = m.base, off
		}
		return src, at, min(n, run)
	}, fn)
}

// patched says whether patches touch the sector of byte off, and up to where the
// answer is the same.
func (m *merged) patched(off int64) (yes bool, run int64) {
	const sector = 512
	start := off &^ (sector - 1)
	i := sort.Search(len(m.patches), func(i int) bool { return m.patches[i].off+int64(len(m.patches[i].data)) > start })
	if i == len(m.patches) {
		return false, m.Size() - off
	}
	q := m.patches[i]
	if from := q.off &^ (sector - 1); from > off {
		return false, from - off
	}
	end := (q.off + int64(len(q.data)) + sector - 1) &^ (sector - 1)
	return true, min(end, m.Size()) - off
}

// locate says what byte off is read from: a snapshot's store at byte at, or the
// base itself (nil); and for how many bytes.
func (m *merged) locate(off int64) (src lun.Device, at, run int64) {
	i := sort.Search(len(m.redirects), func(i int) bool { return m.redirects[i].off > off })
	if i > 0 {
		r := m.redirects[i-1]
		if rel := off - r.off; rel < r.n {
			src, at, run := r.look(rel)
			return src, at, min(run, r.n-rel)
		}
	}
	if i < len(m.redirects) {
		return nil, 0, m.redirects[i].off - off
	}
	return nil, 0, m.Size() - off
}

// overwrite lays the patches over p, which was read at off.
func (m *merged) overwrite(p []byte, off int64) {
	end := off + int64(len(p))
	first := sort.Search(len(m.patches), func(i int) bool { return m.patches[i].off+int64(len(m.patches[i].data)) > off })
	for _, q := range m.patches[first:] {
		if q.off >= end {
			return
		}
		from, to := max(q.off, off), min(q.off+int64(len(q.data)), end)
		copy(p[from-off:to-off], q.data[from-q.off:to-q.off])
	}
}

// preserved calls fn for every run of the device that reads a snapshot, by
// offset, until fn fails.
func (m *merged) preserved(fn func(off, n int64) error) error {
	for _, r := range m.redirects {
		for off, end := r.off, r.off+r.n; off < end; {
			src, _, run := m.locate(off)
			run = min(run, end-off)
			if src != nil {
				if err := fn(off, run); err != nil {
					return err
				}
			}
			off += run
		}
	}
	return nil
}
