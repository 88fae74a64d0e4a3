package vhdx

import (
	"errors"
	"fmt"
	"sort"

	"github.com/cleave-san/cleave/lun"
)

// applied is a file as it will be when its log has been applied. It holds only
// where the changes are: their bytes stay in the log.
type applied struct {
	lun.Device
	size   int64
	data   []change // by offset, one a sector
	zeroes []span   // by offset, apart from one another; data goes before them
}

type span struct{ off, end int64 }

// replay reads the log and makes the file as it would be after it.
func (m *image) replay() (*applied, error) {
	l, err := m.openLog()
	if err != nil {
		return nil, err
	}
	seq, err := l.active()
	if err != nil {
		return nil, err
	}
	head := seq[len(seq)-1]
	if int64(head.flushed) > m.dev.Size() {
		return nil, damaged(l.at(head.pos)+48, "FlushedFileOffset", head.flushed, "the file was cut off: it has %d bytes", m.dev.Size())
	}
	a := &applied{Device: m.dev, size: max(m.dev.Size(), int64(head.last))}
	var all []change
	for _, e := range seq {
		err := l.each(e, func(c change) error {
			if all = append(all, c); len(all) > maxPatches {
				return damaged(l.at(e.pos)+24, "DescriptorCount", e.descriptors, "the log changes more than %d places", maxPatches)
			}
			end := c.off + max(c.zero, logSector)
			if c.off < tableAt[0] || c.off < l.off+l.len && l.off < end {
				return damaged(l.at(e.pos), "FileOffset", c.off, "the log changes the headers or itself")
			}
			a.size = max(a.size, end)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	// The newest first: what it changes, older ones no longer do.
	seen := make(map[int64]bool)
	for i := len(all) - 1; i >= 0; i-- {
		c := all[i]
		switch {
		case c.zero > 0:
			a.zeroes = merge(a.zeroes, span{c.off, c.off + c.zero})
			if len(a.zeroes) > maxZeroes {
				return nil, damaged(l.off, "log", nil, "it clears more than %d places", maxZeroes)
			}
		case !seen[c.off] && !a.cleared(c.off):
			seen[c.off] = true
			a.data = append(a.data, c)
		}
	}
	sort.Slice(a.data, func(i, j int) bool { return a.data[i].off < a.data[j].off })
	return a, nil
}

// merge adds a span to spans that are sorted and apart.
func merge(spans []span, s span) []span {
	i := sort.Search(len(spans), func(i int) bool { return spans[i].end >= s.off })
	j := i
	for ; j < len(spans) && spans[j].off <= s.end; j++ {
		s.off, s.end = min(s.off, spans[j].off), max(s.end, spans[j].end)
	}
	if i == j {
		spans = append(spans, span{})
		copy(spans[i+1:], spans[i:])
		spans[i] = s
		return spans
	}
	spans[i] = s
	return append(spans[:i+1], spans[j:]...)
}

func (a *applied) cleared(off int64) bool {
	i := sort.Search(len(a.zeroes), func(i int) bool { return a.zeroes[i].end > off })
	return i < len(a.zeroes) && a.zeroes[i].off <= off
}

func (a *applied) Size() int64 { return a.size }

func (a *applied) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

func (a *applied) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), a.size); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		k, err := a.read(p[n:], off+int64(n))
		if err != nil {
			return n, err
		}
		n += k
	}
	return len(p), nil
}

// read reads what is of one origin at off, at most all of p.
func (a *applied) read(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	i := sort.Search(len(a.data), func(i int) bool { return a.data[i].off+logSector > off })
	if i < len(a.data) {
		if c := a.data[i]; c.off <= off {
			b, err := a.sector(c)
			return copy(p, b[off-c.off:]), err
		}
		end = min(end, a.data[i].off)
	}
	i = sort.Search(len(a.zeroes), func(i int) bool { return a.zeroes[i].end > off })
	if i < len(a.zeroes) {
		if z := a.zeroes[i]; z.off <= off {
			n := min(end, z.end) - off
			clear(p[:n])
			return int(n), nil
		}
		end = min(end, a.zeroes[i].off)
	}
	size := a.Device.Size()
	if off >= size { // the file will have been extended
		clear(p[:end-off])
		return int(end - off), nil
	}
	return a.Device.ReadAt(p[:min(end, size)-off], off)
}

// sector puts a changed sector together: the log keeps its first and last bytes
// in the descriptor.
func (a *applied) sector(c change) ([logSector]byte, error) {
	var b [logSector]byte
	if _, err := a.Device.ReadAt(b[:], c.src); err != nil {
		return b, fmt.Errorf("vhdx: read the log: %w", err)
	}
	copy(b[:], c.leading[:])
	copy(b[logSector-4:], c.trailing[:])
	return b, nil
}

// Replay applies the log of a VHDX file to the file, so that it can be written
// in place; a file whose log is empty is left as it is. A device can't grow: a
// log that needs a longer file than dev is refused, before anything is written.
//
// It may be interrupted anywhere and repeated: the header that declares the log
// empty is written last, after all else is stable. Nobody else may use the file
// meanwhile.
func Replay(dev lun.Device) error {
	m := &image{dev: dev}
	if err := m.readHeaders(); err != nil {
		return err
	}
	if m.head.logGuid() == (guid{}) {
		return nil
	}
	a, err := m.replay()
	if err != nil {
		return err
	}
	if a.size > dev.Size() {
		return fmt.Errorf("vhdx: the log needs a file of %d bytes, and this one has %d and can't grow: %w", a.size, dev.Size(), lun.ErrNoSpace)
	}
	if err := a.apply(); err != nil {
		return fmt.Errorf("vhdx: apply the log: %w", err)
	}
	h := m.head
	clear(h[48:64])
	if err := m.writeHeader(h); err != nil {
		return fmt.Errorf("vhdx: declare the log empty: %w", err)
	}
	return nil
}

// apply writes the changes, none of which lies over the log.
func (a *applied) apply() error {
	zero := make([]byte, 64*kib)
	for _, z := range a.zeroes {
		for off := z.off; off < z.end; off += int64(len(zero)) {
			if _, err := a.Device.WriteAt(zero[:min(int64(len(zero)), z.end-off)], off); err != nil {
				return err
			}
		}
	}
	for _, c := range a.data {
		b, err := a.sector(c)
		if err != nil {
			return err
		}
		if _, err := a.Device.WriteAt(b[:], c.off); err != nil {
			return errors.Join(fmt.Errorf("at byte %d", c.off), err)
		}
	}
	return a.Device.Sync()
}
