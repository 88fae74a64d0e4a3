package vmdk

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk/blockmap"
)

// files is all files of a disk one behind the other, so that one cache of
// bounded size serves the tables of all.
type files struct {
	extents []*extent // by base
	size    int64
}

func (f *files) add(e *extent) {
	e.base = f.size
	f.size += e.dev.Size()
	f.extents = append(f.extents, e)
}

func (f *files) Size() int64                        { return f.size }
func (f *files) Sync() error                        { return nil }
func (f *files) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

func (f *files) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		at := off + int64(n)
		i := sort.Search(len(f.extents), func(i int) bool { return f.extents[i].base+f.extents[i].dev.Size() > at })
		if i == len(f.extents) {
			return n, lun.ErrOutOfRange
		}
		e := f.extents[i]
		k := min(int64(len(p)-n), e.base+e.dev.Size()-at)
		if _, err := e.dev.ReadAt(p[n:][:k], at-e.base); err != nil {
			return n, err
		}
		n += int(k)
	}
	return n, nil
}

// number reads a table's entry at byte at of the extent's file.
func (m *image) number(e *extent, at int64) (uint32, error) {
	var b [4]byte
	if err := lun.CheckRange(at, 4, e.dev.Size()); err != nil {
		return 0, err
	}
	if _, err := m.pages.ReadAt(b[:], e.base+at); err != nil {
		return 0, fmt.Errorf("vmdk: read a grain table at byte %d: %w", at, err)
	}
	return binary.LittleEndian.Uint32(b[:]), nil
}

// table is where grain table i lies; 0: it is absent.
func (m *image) table(e *extent, gd, i int64) (int64, error) {
	v, err := m.number(e, gd+4*i)
	if err != nil || v == 0 {
		return 0, err
	}
	at := int64(v) * sector
	if lun.CheckRange(at, 4*e.tableLen, e.dev.Size()) != nil {
		return 0, m.damaged(e, gd+4*i, fmt.Sprintf("grain directory entry %d", i), v, "the grain table lies beyond the end of the file")
	}
	return at, nil
}

// State of a grain.
type state uint8

const (
	absent state = iota // the parent's, or zeroes
	zeroed
	present
)

// grainAt looks up grain i.
func (m *image) grainAt(e *extent, gd, i int64) (state, int64, error) {
	table, err := m.table(e, gd, i/e.tableLen)
	if err != nil || table == 0 {
		return absent, 0, err
	}
	where := table + 4*(i%e.tableLen)
	v, err := m.number(e, where)
	switch {
	case err != nil || v == 0:
		return absent, 0, err
	case v == 1 && e.zeroGrain:
		return zeroed, 0, nil
	}
	at := int64(v) * sector
	length := min(e.grain, e.line.size-i*e.grain)
	if e.packed {
		length = sector // its marker tells the rest
	}
	if lun.CheckRange(at, length, e.dev.Size()) != nil {
		return absent, 0, m.damaged(e, where, fmt.Sprintf("grain table entry %d", i), v, "the grain lies beyond the end of the file")
	}
	if at < gd+4*e.tables() && gd < at+length || at < table+4*e.tableLen && table < at+length {
		return absent, 0, m.damaged(e, where, fmt.Sprintf("grain table entry %d", i), v, "the grain lies over the tables")
	}
	return present, at, nil
}

// maxScan bounds the bytes of grain tables that are looked through at opening.
const maxScan = 4 << 20

// tablesWhole looks whether the entries below a grain directory make sense.
func (m *image) tablesWhole(e *extent, gd int64) error {
	for i := range e.tables() {
		table, err := m.table(e, gd, i)
		if err != nil {
			return err
		}
		if m.scan -= 4; m.scan < 0 {
			return nil
		}
		if table == 0 {
			continue
		}
		for g := i * e.tableLen; g < (i+1)*e.tableLen && g*e.grain < e.line.size; g++ {
			if m.scan -= 4; m.scan < 0 {
				return nil
			}
			if _, _, err := m.grainAt(e, gd, g); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *image) mapExtent(off, n int64) (blockmap.Run, error) {
	i := sort.Search(len(m.extents), func(i int) bool { return m.extents[i].start > off }) - 1
	e := m.extents[i]
	in := off - e.start
	n = min(n, e.line.size-in)
	kind := blockmap.Own
	if !e.write {
		kind = blockmap.Shared
	}
	switch {
	case e.line.kind == "ZERO":
		return blockmap.Run{Kind: blockmap.Zero, Len: n}, nil
	case !e.sparse():
		return blockmap.Run{Kind: kind, Len: n, Dev: e.dev, Off: e.line.off + in}, nil
	}
	g, inGrain := in/e.grain, in%e.grain
	n = min(n, e.grain-inGrain)
	st, at, err := m.grainAt(e, e.gd, g)
	switch {
	case err != nil:
		return blockmap.Run{}, err
	case st == zeroed:
		return blockmap.Run{Kind: blockmap.Zero, Len: n}, nil
	case st == absent:
		return blockmap.Parent(m.parent, off, n), nil
	case e.packed:
		return blockmap.Run{Kind: blockmap.Packed, Len: n, Off: inGrain, Unpack: func() ([]byte, error) { return m.unpack(e, g, at) }}, nil
	}
	return blockmap.Run{Kind: kind, Len: n, Dev: e.dev, Off: at + inGrain}, nil
}

// unpacked is the grain that was unpacked last: reads smaller than a grain
// mostly follow one another.
type unpacked struct {
	sync.Mutex
	e    *extent
	at   int64
	data []byte
}

// unpack reads a compressed grain: its marker is the sector number of the grain
// in the extent (8 bytes) and the length of the data that follow (4).
func (m *image) unpack(e *extent, g, at int64) ([]byte, error) {
	m.last.Lock()
	if m.last.e == e && m.last.at == at {
		defer m.last.Unlock()
		return m.last.data, nil
	}
	m.last.Unlock()
	var h [12]byte
	if _, err := e.dev.ReadAt(h[:], at); err != nil {
		return nil, fmt.Errorf("vmdk: read the marker of a grain at byte %d: %w", at, err)
	}
	lba, length := binary.LittleEndian.Uint64(h[:]), int64(binary.LittleEndian.Uint32(h[8:]))
	if want := uint64(g * e.grain / sector); lba != want {
		return nil, m.damaged(e, at, "lba", lba, "the grain's marker must say %d", want)
	}
	if length == 0 || length > 2*e.grain || lun.CheckRange(at+12, length, e.dev.Size()) != nil {
		return nil, m.damaged(e, at+8, "dataSize", length, "no grain of %d bytes is that long compressed, or the file ends before", e.grain)
	}
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("%w: %w", m.damaged(e, at+12, "compressed grain", nil, "is damaged"), err)
	}
	z, err := zlib.NewReader(bufferedAt(e.dev, at+12, length))
	if err != nil {
		return fail(err)
	}
	var data bytes.Buffer
	if _, err := io.Copy(&data, io.LimitReader(z, e.grain+1)); err != nil {
		return fail(err)
	}
	if n, need := int64(data.Len()), min(e.grain, e.line.size-g*e.grain); n < need || n > e.grain {
		return nil, m.damaged(e, at+12, "compressed grain", n, "has another length than a grain's %d bytes", e.grain)
	}
	m.last.Lock()
	defer m.last.Unlock()
	m.last.e, m.last.at, m.last.data = e, at, data.Bytes()
	return m.last.data, nil
}

func bufferedAt(dev lun.Device, off, n int64) io.Reader {
	return &byteReader{r: io.NewSectionReader(dev, off, n)}
}

// byteReader reads 4 KiB at a time. A lun.Device gives no short reads, so the
// section is read to its end exactly.
type byteReader struct {
	r   *io.SectionReader
	off int64
	buf []byte
}

func (b *byteReader) Read(p []byte) (int, error) {
	if len(b.buf) == 0 {
		n := min(4096, b.r.Size()-b.off)
		if n == 0 {
			return 0, io.EOF
		}
		b.buf = make([]byte, n)
		if _, err := b.r.ReadAt(b.buf, b.off); err != nil {
			return 0, err
		}
		b.off += n
	}
	n := copy(p, b.buf)
	b.buf = b.buf[n:]
	return n, nil
}

// overlaps looks for grains that share bytes of a file with one another or with
// the tables, and for extents that share a file.
func (m *image) overlaps() error {
	for i, e := range m.extents {
		for _, other := range m.extents[:i] {
			if e.line.file == "" || e.line.file != other.line.file {
				continue
			}
			if e.sparse() || other.sparse() || e.line.off < other.line.off+other.line.size && other.line.off < e.line.off+e.line.size {
				return m.damaged(e, e.line.at, "extent", e.line.file, "two extents share bytes of this file: neither is written")
			}
		}
		if e.sparse() && e.write {
			if err := m.grainsOverlap(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *image) grainsOverlap(e *extent) error {
	claims := blockmap.NewClaims(e.dev.Size()/sector, e.grain/sector)
	if claims == nil {
		return fmt.Errorf("vmdk: grains of %d bytes in a file of %d bytes: too many to check, so nothing is written: %w", e.grain, e.dev.Size(), lun.ErrReadOnly)
	}
	for i := range e.tables() {
		table, err := m.table(e, e.gd, i)
		if err != nil {
			return err
		}
		if table == 0 {
			continue
		}
		if table+4*e.tableLen > e.overhead {
			return m.damaged(e, e.gd+4*i, fmt.Sprintf("grain directory entry %d", i), table/sector, "the grain table lies among the grains (overHead): nothing is written")
		}
		for g := i * e.tableLen; g < (i+1)*e.tableLen && g*e.grain < e.line.size; g++ {
			st, at, err := m.grainAt(e, e.gd, g)
			if err != nil {
				return err
			}
			if st == present && (at < e.overhead || !claims.Claim(at/sector)) {
				return m.damaged(e, table+4*(g%e.tableLen), fmt.Sprintf("grain table entry %d", g), at/sector, "the grain overlaps another one or the tables: neither is written")
			}
		}
	}
	return nil
}

var _ lun.Device = (*files)(nil)
