package embedded

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
)

// A map file is a bitmap on disk: 512-byte sectors, the first a header, each
// of the others a block of the bitmap with a checksum of its own. Sectors are
// written in place. One that was torn by a power cut fails its checksum and is
// read as all ones: a bitmap that claims too much costs copying, never data.
//
//	header  0  magic "CLEAVMAP"      block  0  CRC-32C of bytes 4 to 511
//	        8  version (1)                  4  index of the block
//	       12  bytes per bit (int64)        8  zero
//	       20  CRC-32C of bytes 0-19       16  62 words of 64 bits
//
// Integers are little-endian. A sector of zeroes is a block without bits.
const (
	sector         = 512
	mapMagic       = "CLEAVMAP"
	mapVersion     = 1
	mapHeaderBytes = 24

	flushAtOnce = 16 * sector // that a flush writes with one call
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errMapDamaged says that a map file's bits can't be had: the caller takes all
// of them to be set.
var errMapDamaged = errors.New("damaged")

// mapFile is a bitmap and the file that it is flushed to.
type mapFile struct {
	*bitmap
	unit int64 // bytes per bit
	f    disk.File
	path string

	flushing sync.Mutex
	failed   error   // a flush failed: what the file holds is not known
	taken    []int64 // the blocks of the last flush
	buf      []byte  // blocks to be written next
}

// createMap makes a map file without bits, in place of any that was there. Its
// name is stable after SyncDir of its directory.
func createMap(fs disk.FS, path string, size, unit int64) (*mapFile, error) {
	return makeMap(fs, path, size, unit, 0)
}

// createLog is createMap for the map of an intent log. It has all its blocks on
// the disk, so that a flush of a mark has no metadata to wait for.
func createLog(fs disk.FS, path string, size, unit int64) (*mapFile, error) {
	return makeMap(fs, path, size, unit, blocksFor(regionsFor(size, unit)))
}

func makeMap(fs disk.FS, path string, size, unit, blocks int64) (*mapFile, error) {
	hdr := make([]byte, sector*(1+blocks))
	copy(hdr, mapMagic)
	binary.LittleEndian.PutUint32(hdr[8:], mapVersion)
	binary.LittleEndian.PutUint64(hdr[12:], uint64(unit))
	binary.LittleEndian.PutUint32(hdr[20:], crc32.Checksum(hdr[:20], castagnoli))
	f, err := fs.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(hdr, 0)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(fmt.Errorf("making map %s: %w", filepath.Base(path), noSpace(err)), fs.Remove(path))
	}
	return &mapFile{bitmap: newBitmap(regionsFor(size, unit)), unit: unit, f: f, path: path}, nil
}

// createFullMap makes a map file with all bits set, in place of one that was lost.
// It gets its name when they are stable: a crash leaves all of them or no map, and
// never one that claims too little. The name is stable as createMap's is.
func createFullMap(fs disk.FS, path string, size, unit int64) (*mapFile, error) {
	m, err := createMap(fs, path+disk.NewSuffix, size, unit)
	if err != nil {
		return nil, err
	}
	for i := range m.n() {
		m.set(i)
	}
	if err = m.flush(); err == nil {
		err = fs.Rename(m.path, path)
	}
	if err != nil {
		m.close()
		return nil, errors.Join(fmt.Errorf("making map %s: %w", filepath.Base(path), noSpace(err)), fs.Remove(m.path))
	}
	m.path = path
	return m, nil
}

// openMap reads the map file of a device of size bytes. A damaged header is
// errMapDamaged; damaged blocks are counted in bad, and their bits are set.
func openMap(fs disk.FS, path string, size int64) (m *mapFile, bad int, err error) {
	f, err := fs.OpenFile(path, os.O_RDWR)
	if err != nil {
		return nil, 0, err
	}
	unit, err := readMapHeader(f)
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("map %s: %w", filepath.Base(path), err)
	}
	m = &mapFile{bitmap: newBitmap(regionsFor(size, unit)), unit: unit, f: f, path: path}
	if bad, err = m.load(f); err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("map %s: %w", filepath.Base(path), err)
	}
	return m, bad, nil
}

func readMapHeader(f io.ReaderAt) (unit int64, err error) {
	hdr := make([]byte, mapHeaderBytes)
	if _, err := f.ReadAt(hdr, 0); err == io.EOF {
		return 0, fmt.Errorf("%w: shorter than its header", errMapDamaged)
	} else if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	switch unit = int64(le.Uint64(hdr[12:])); {
	case string(hdr[:8]) != mapMagic:
		return 0, fmt.Errorf("%w: magic is %q", errMapDamaged, hdr[:8])
	case le.Uint32(hdr[20:]) != crc32.Checksum(hdr[:20], castagnoli):
		return 0, fmt.Errorf("%w: checksum of the header", errMapDamaged)
	case le.Uint32(hdr[8:]) != mapVersion:
		return 0, fmt.Errorf("version %d is newer than this program", le.Uint32(hdr[8:]))
	case unit < sector || unit > maxVolume || unit&(unit-1) != 0:
		return 0, fmt.Errorf("%w: %d bytes per bit", errMapDamaged, unit)
	}
	return unit, nil
}

// load reads all blocks. A file that ends early has no further bits, as one
// that was just made.
func (m *mapFile) load(f io.ReaderAt) (bad int, err error) {
	buf := make([]byte, 128*sector)
	for i := int64(0); i < m.blocks(); {
		want := min(int64(len(buf)), (m.blocks()-i)*sector)
		n, err := f.ReadAt(buf[:want], (i+1)*sector)
		if err != nil && err != io.EOF {
			return bad, err
		}
		for got := buf[:n]; len(got) > 0; i++ {
			b := got[:min(sector, len(got))]
			got = got[len(b):]
			if !m.decodeBlock(i, b) {
				bad++
				m.fillBlock(i)
			}
		}
		if err == io.EOF {
			break
		}
	}
	return bad, nil
}

var emptySector [sector]byte

// decodeBlock takes over block i's bits, unless they fail their check.
func (m *mapFile) decodeBlock(i int64, b []byte) bool {
	if bytes.Equal(b, emptySector[:len(b)]) {
		return true
	}
	le := binary.LittleEndian
	if len(b) < sector || le.Uint32(b) != crc32.Checksum(b[4:], castagnoli) || int64(le.Uint32(b[4:])) != i {
		return false
	}
	for w := range int64(wordsPerBlock) {
		for word := le.Uint64(b[16+8*w:]); word != 0; word &= word - 1 {
			bit := i*bitsPerBlock + w*64 + int64(bits.TrailingZeros64(word))
			if bit < m.n() {
				m.set(bit)
			}
		}
	}
	if blk := m.peek(i); blk != nil {
		blk.dirty.Store(false)
	}
	return true
}

func (m *mapFile) fillBlock(i int64) {
	for bit := i * bitsPerBlock; bit < min((i+1)*bitsPerBlock, m.n()); bit++ {
		m.set(bit)
	}
}

// flush makes the bits that were set or cleared before the call stable. Once
// it has failed it fails for ever, since what is on the disk is not known.
func (m *mapFile) flush() error {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	if m.failed != nil {
		return m.failed
	}
	m.taken = m.takeChanged(m.taken)
	slices.Sort(m.taken)
	wrote, next := false, int64(-1)
	m.buf = m.buf[:0]
	for _, i := range m.taken {
		blk := m.peek(i)
		if !blk.dirty.Swap(false) {
			continue
		}
		if len(m.buf) > 0 && (i != next || len(m.buf) == flushAtOnce) {
			if err := m.writeBlocks(next); err != nil {
				return err
			}
		}
		m.buf = appendBlock(m.buf, i, blk)
		wrote, next = true, i+1
	}
	if !wrote {
		return nil
	}
	if err := m.writeBlocks(next); err != nil {
		return err
	}
	if err := m.f.Sync(); err != nil {
		m.failed = fmt.Errorf("syncing map %s: %w", filepath.Base(m.path), err)
	}
	return m.failed
}

// writeBlocks writes the blocks in m.buf, of which next is the one that follows.
func (m *mapFile) writeBlocks(next int64) error {
	first := next - int64(len(m.buf)/sector)
	if _, err := m.f.WriteAt(m.buf, (first+1)*sector); err != nil {
		m.failed = fmt.Errorf("writing map %s: %w", filepath.Base(m.path), err)
	}
	m.buf = m.buf[:0]
	return m.failed
}

// appendBlock adds block i, as it is on disk, to buf.
func appendBlock(buf []byte, i int64, blk *bitBlock) []byte {
	n := len(buf)
	buf = append(buf, emptySector[:]...)
	b := buf[n:]
	binary.LittleEndian.PutUint32(b[4:], uint32(i))
	for w := range blk.words {
		binary.LittleEndian.PutUint64(b[16+8*w:], blk.words[w].Load())
	}
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return buf
}

func (m *mapFile) close() error {
	if m == nil {
		return nil
	}
	return m.f.Close()
}
