package jbd2

import (
	"cmp"
	"slices"
	"sort"

	"github.com/cleave-san/cleave/lun"
)

// View is a device as it is after the replay: a read-only lun.Device. All
// methods may be called at once.
type View struct {
	dev   lun.Device
	size  int64 // of a block
	moved []moved
	patch []Patch
}

// moved is a block that is read from elsewhere.
type moved struct {
	block   uint64
	at      int64 // byte on the device
	escaped bool
}

// Patch is bytes that a view shows at Off instead of what is there.
type Patch struct {
	Off  int64
	Data []byte
}

// View shows dev, which holds the file system from its first byte on. locate
// says where on dev a block of the journal is. The journal in the view is empty.
func (l *Log) View(dev lun.Device, locate func(block uint32) (int64, error)) (*View, error) {
	v := &View{dev: dev, size: l.s.blockSize, moved: make([]moved, 0, len(l.place))}
	for block, c := range l.place {
		at, err := locate(c.block)
		if err != nil {
			return nil, err
		}
		v.moved = append(v.moved, moved{block, at, c.escaped})
	}
	slices.SortFunc(v.moved, func(a, b moved) int { return cmp.Compare(a.block, b.block) })
	at, err := locate(0)
	if err != nil {
		return nil, err
	}
	empty := l.s.emptied(l.end)
	v.Patch(Patch{at, empty[:]})
	return v, nil
}

// Patch adds a patch, over the blocks and over earlier patches. It must not be
// called while the view is read.
func (v *View) Patch(p Patch) { v.patch = append(v.patch, p) }

// Moved tells where the bytes of [off, off+n) lie: how many of them, from off
// on, are alike; where on the device they begin; and whether they can't be
// pointed at. n is at least 1.
func (v *View) Moved(off, n int64) (at, same int64, encoded bool) {
	block := uint64(off / v.size)
	i := sort.Search(len(v.moved), func(i int) bool { return v.moved[i].block >= block })
	if i == len(v.moved) {
		return off, n, false
	}
	if m := v.moved[i]; m.block == block {
		return m.at + off%v.size, min(n, v.size-off%v.size), m.escaped
	}
	return off, min(n, int64(v.moved[i].block)*v.size-off), false
}

// ReadAt implements lun.Device. Runs without a block that is elsewhere are one
// read of the device.
func (v *View) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), v.dev.Size()); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		from := off + int64(done)
		at, n, escaped := v.Moved(from, int64(len(p)-done))
		part := p[done : done+int(n)]
		if k, err := v.dev.ReadAt(part, at); err != nil {
			return done + k, err
		}
		if escaped { // its beginning is zeroed in the journal
			unescape(part, from%v.size)
		}
		done += int(n)
	}
	for _, q := range v.patch {
		if from, to := max(off, q.Off), min(off+int64(len(p)), q.Off+int64(len(q.Data))); from < to {
			copy(p[from-off:to-off], q.Data[from-q.Off:])
		}
	}
	return len(p), nil
}

// unescape puts the journal's magic number back into a block of which p is the
// part from byte at on.
func unescape(p []byte, at int64) {
	var m [4]byte
	be.PutUint32(m[:], magic)
	if at < 4 {
		copy(p, m[at:])
	}
}

func (v *View) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (v *View) Size() int64                        { return v.dev.Size() }
func (v *View) Sync() error                        { return nil }
