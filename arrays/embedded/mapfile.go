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
	"github.com/cleave-san/cleave/lun"
)

// A map file is a bitmap on disk: 512-byte sectors, the first a header, each
// of the others a block of the bitmap with a checksum of its own. Sectors are
// written in place. One that was torn by a power cut fails its checksum and is
// read as all ones: a bitmap that claims too much costs copying, never data.
//
//	header  0  magic "CLEAVMAP"        block  0  CRC-32C of bytes 4 to 511
//	        8  version: 1, or 2               4  index of the block
//	           with a journal                 8  zero
//	       12  bytes per bit (int64)         16  62 words of 64 bits
//	       20  version 1: CRC-32C of bytes 0-19
//	           version 2: sectors of the journal, which follows the header
//	       24  version 2: CRC-32C of bytes 0-23
//
// Integers are little-endian. A sector of zeroes is a block without bits. See
// journal for what is in that.
const (
	sector         = 512
	mapMagic       = "CLEAVMAP"
	mapVersion     = 1
	mapHeaderBytes = 28

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

	journal *journal // under flushing; nil where there is none

	flushing sync.Mutex
	failed   error   // a flush failed: what the file holds is not known
	taken    []int64 // the blocks of the last flush
	buf      []byte  // blocks to be written next
}

// createMap makes a map file without bits, in place of any that was there. Its
// name is stable after SyncDir of its directory.
func createMap(fs disk.FS, path string, size, unit int64) (*mapFile, error) {
	return makeMap(fs, path, size, unit, nil, 0)
}

// createLog is createMap for the map of an intent log: it has a journal, and all
// its sectors on the disk, so that a flush has no metadata to wait for.
func createLog(fs disk.FS, path string, size, unit int64) (*mapFile, error) {
	blocks := blocksFor(regionsFor(size, unit))
	return makeMap(fs, path, size, unit, newJournal(blocks), blocks)
}

// makeMap makes a map file with so many blocks on the disk.
func makeMap(fs disk.FS, path string, size, unit int64, j *journal, blocks int64) (*mapFile, error) {
	m := &mapFile{bitmap: newBitmap(regionsFor(size, unit)), unit: unit, path: path, journal: j}
	b := make([]byte, (m.firstBlock()+blocks)*sector)
	le := binary.LittleEndian
	copy(b, mapMagic)
	le.PutUint64(b[12:], uint64(unit))
	if j == nil {
		le.PutUint32(b[8:], mapVersion)
		le.PutUint32(b[20:], crc32.Checksum(b[:20], castagnoli))
	} else {
		le.PutUint32(b[8:], mapVersion+1)
		le.PutUint32(b[20:], uint32(j.sectors))
		le.PutUint32(b[24:], crc32.Checksum(b[:24], castagnoli))
	}
	f, err := fs.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(fmt.Errorf("making map %s: %w", filepath.Base(path), noSpace(err)), fs.Remove(path))
	}
	m.f = f
	return m, nil
}

// firstBlock is the sector of block 0.
func (m *mapFile) firstBlock() int64 {
	if m.journal == nil {
		return 1
	}
	return 1 + m.journal.sectors
}

// createFullMap makes a map file with all bits set, in place of one that was
// lost.
func createFullMap(fs disk.FS, path string, size, unit int64) (*mapFile, error) {
	return installMap(fs, path, createMap, size, unit, func(m *mapFile) {
		for i := range m.n() {
			m.set(i)
		}
	})
}

// withJournal makes the map file of an intent log one with a journal, if it is
// not: of an array that an earlier version made, or where the log was lost. It
// closes m if it is to be used no more.
func (m *mapFile) withJournal(fs disk.FS, size int64) (*mapFile, error) {
	if m.journal != nil {
		return m, nil
	}
	n, err := installMap(fs, m.path, createLog, size, m.unit, func(n *mapFile) { n.or(m.bitmap) })
	if err == nil {
		err = fs.SyncDir(filepath.Dir(n.path)) // or marks would go to a file without a name
	}
	if err != nil {
		n.close()
		return nil, errors.Join(err, m.close())
	}
	return n, m.close()
}

// installMap makes a map file with the bits that mark sets. It gets its name when
// they are stable: a crash leaves all of them or what was there before, and never
// a map that claims too little. The name is stable as createMap's is.
func installMap(fs disk.FS, path string, create func(disk.FS, string, int64, int64) (*mapFile, error), size, unit int64, mark func(*mapFile)) (*mapFile, error) {
	m, err := create(fs, path+disk.NewSuffix, size, unit)
	if err != nil {
		return nil, err
	}
	mark(m)
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
	unit, j, err := readMapHeader(f)
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("map %s: %w", filepath.Base(path), err)
	}
	m = &mapFile{bitmap: newBitmap(regionsFor(size, unit)), unit: unit, f: f, path: path, journal: j}
	if bad, err = m.load(f); err == nil && j != nil {
		var more int64
		more, err = m.replay(f)
		bad += int(more)
		if err == nil {
			// What was read may not be stable: a process that ended leaves a
			// journal that was reset in the cache. Were it lost while the first
			// new marks are kept, they would count beside what was cleared.
			err = f.Sync()
		}
	}
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("map %s: %w", filepath.Base(path), err)
	}
	return m, bad, nil
}

func readMapHeader(f io.ReaderAt) (unit int64, j *journal, err error) {
	hdr := make([]byte, mapHeaderBytes)
	if n, err := f.ReadAt(hdr, 0); err == io.EOF {
		return 0, nil, fmt.Errorf("%w: %d bytes are shorter than its header", errMapDamaged, n)
	} else if err != nil {
		return 0, nil, err
	}
	le := binary.LittleEndian
	version, covered := le.Uint32(hdr[8:]), 20
	if version == mapVersion+1 {
		covered = 24
		j = &journal{sectors: int64(le.Uint32(hdr[20:]))}
	}
	switch unit = int64(le.Uint64(hdr[12:])); {
	case string(hdr[:8]) != mapMagic:
		return 0, nil, fmt.Errorf("%w: magic is %q", errMapDamaged, hdr[:8])
	case le.Uint32(hdr[covered:]) != crc32.Checksum(hdr[:covered], castagnoli):
		return 0, nil, fmt.Errorf("%w: checksum of the header", errMapDamaged)
	case j == nil && version != mapVersion:
		return 0, nil, fmt.Errorf("version %d is newer than this program", version)
	case unit < sector || unit > maxVolume || unit&(unit-1) != 0:
		return 0, nil, fmt.Errorf("%w: %d bytes per bit", errMapDamaged, unit)
	case j != nil && (j.sectors < minJournal || j.sectors > maxJournal):
		return 0, nil, fmt.Errorf("%w: a journal of %d sectors", errMapDamaged, j.sectors)
	}
	return unit, j, nil
}

// load reads all blocks. A file that ends early has no further bits, as one
// that was just made.
func (m *mapFile) load(f io.ReaderAt) (bad int, err error) {
	buf := make([]byte, 128*sector)
	for i := int64(0); i < m.blocks(); {
		want := min(int64(len(buf)), (m.blocks()-i)*sector)
		n, err := f.ReadAt(buf[:want], (m.firstBlock()+i)*sector)
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
// it has failed it fails for ever, since what is on the disk is not known; but not
// for want of room, of which a write tells before it is done: then the next flush
// writes what this one could not.
func (m *mapFile) flush() error {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	if m.failed != nil {
		return m.failed
	}
	if err := m.flushBlocks(); err != nil || m.journal == nil {
		return err
	}
	return m.resetJournal()
}

// flushBlocks writes the blocks that changed. m.flushing is held.
func (m *mapFile) flushBlocks() error {
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
	return m.sync()
}

// sync makes what was written stable. m.flushing is held.
func (m *mapFile) sync() error {
	if err := m.f.Sync(); err != nil {
		m.failed = fmt.Errorf("syncing map %s: %w", filepath.Base(m.path), err)
	}
	return m.failed
}

// intact reports whether no flush has failed.
func (m *mapFile) intact() bool {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	return m.failed == nil
}

// writeBlocks writes the blocks in m.buf, of which next is the one that follows.
func (m *mapFile) writeBlocks(next int64) error {
	first := next - int64(len(m.buf)/sector)
	_, err := m.f.WriteAt(m.buf, (m.firstBlock()+first)*sector)
	m.buf = m.buf[:0]
	if err == nil {
		return nil
	}
	err = fmt.Errorf("writing map %s: %w", filepath.Base(m.path), noSpace(err))
	if m.journal == nil && errors.Is(err, lun.ErrNoSpace) { // a log has all its room from the start
		for _, i := range m.taken {
			m.touch(m.peek(i), i)
		}
		return err
	}
	m.failed = err
	return err
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
