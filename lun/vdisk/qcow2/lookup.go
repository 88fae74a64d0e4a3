package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cleave-san/cleave/lun"
)

// kind is what stands behind guest bytes.
type kind int

const (
	absent     kind = iota // the backing file's, or zeroes
	zero                   // zeroes, whatever the backing file has
	data                   // in the data file at run.host
	compressed             // in the cluster whose entry is run.host
)

func (k kind) String() string {
	return [...]string{"absent", "zero", "data", "compressed"}[k]
}

// run is guest bytes that are alike.
type run struct {
	kind kind
	n    int64
	host int64 // data: offset; compressed: the descriptor
	own  bool  // data: COPIED in both tables

	steps int // that it took
}

const (
	copiedFlag     = 1 << 63
	compressedFlag = 1 << 62
	zeroFlag       = 1 << 0
	offsetMask     = 0x00FFFFFFFFFFFE00 // bits 9 to 55

	subclusters = 32

	// maxSteps bounds the work of one lookup, and of one call of a map's
	// callback: two levels of tables can describe an exabyte in single steps.
	maxSteps = 1 << 12
)

// lookup tells what is at guest offset off, for at most limit bytes, perhaps
// less than are alike. limit is not 0, and the range is in the disk.
func (d *disk) lookup(off, limit int64) (run, error) {
	r, err := d.step(off)
	if err != nil {
		return r, err
	}
	for r.steps = 1; r.n < limit && r.steps < maxSteps; r.steps++ {
		next, err := d.step(off + r.n)
		if err != nil {
			break // reported when the caller comes to it
		}
		if next.kind != r.kind || r.kind == compressed || next.own != r.own || r.kind == data && next.host != r.host+r.n {
			break
		}
		r.n += next.n
	}
	r.n = min(r.n, limit)
	return r, nil
}

// step tells what is at off up to the end of its subcluster, cluster or absent
// L2 table.
func (d *disk) step(off int64) (run, error) {
	perL2, cluster := d.h.perL2(), d.h.cluster()
	at := d.l1.off + off/perL2*8
	l1, err := d.entry(at, "L1 entry")
	if err != nil {
		return run{}, err
	}
	l2 := int64(l1 & offsetMask)
	switch {
	case l1&^(offsetMask|copiedFlag) != 0:
		return run{}, damaged(at, "L1 entry", hex(l1), "has reserved bits")
	case l2 == 0:
		return run{kind: absent, n: perL2 - off%perL2}, nil
	case l2&(cluster-1) != 0:
		return run{}, damaged(at, "L1 entry", hex(l1), "does not point to the start of a cluster of %d bytes", cluster)
	}
	at = l2 + off%perL2>>d.h.clusterBits*d.h.entrySize()
	e, err := d.entry(at, "L2 entry")
	if err != nil {
		return run{}, err
	}
	r, err := d.decode(e, at, off)
	r.own = r.own && l1&copiedFlag != 0
	return r, err
}

// decode reads L2 entry e, which is at byte at, for guest offset off.
func (d *disk) decode(e uint64, at, off int64) (run, error) {
	cluster := d.h.cluster()
	inside := off & (cluster - 1)
	r := run{n: cluster - inside, own: e&copiedFlag != 0}
	if e&compressedFlag != 0 {
		r.kind, r.host, r.own = compressed, int64(e&^uint64(copiedFlag|compressedFlag)), false
		if d.h.has(externalDataBit) {
			return r, damaged(at, "L2 entry", hex(e), "is compressed, though the data is in another file")
		}
		return r, nil
	}
	zeroOK := uint64(0)
	if d.h.version >= 3 && !d.h.extended() {
		zeroOK = zeroFlag
	}
	host := int64(e & offsetMask)
	switch {
	case e&^(offsetMask|copiedFlag|zeroOK) != 0:
		return r, damaged(at, "L2 entry", hex(e), "has reserved bits")
	case host&(cluster-1) != 0:
		return r, damaged(at, "L2 entry", hex(e), "does not point to the start of a cluster of %d bytes", cluster)
	}
	allocated := host != 0 || d.h.has(externalDataBit) && e&copiedFlag != 0
	switch {
	case d.h.extended():
		var err error
		if r, err = d.subcluster(r, at, inside); err != nil {
			return r, err
		}
		if r.kind == data && !allocated {
			return r, damaged(at, "L2 entry", hex(e), "has allocated subclusters and no cluster")
		}
	case e&zeroFlag != 0:
		r.kind = zero
	case allocated:
		r.kind = data
	}
	if r.kind != data {
		r.own = false
		return r, nil
	}
	if d.h.has(externalDataBit) && host != off-inside {
		return r, damaged(at, "L2 entry", hex(e), "maps guest byte %d elsewhere in the external data file", off-inside)
	}
	if host >= d.data.Size() {
		return r, damaged(at, "L2 entry", hex(e), "points beyond the file of %d bytes", d.data.Size())
	}
	r.host = host + inside
	return r, nil
}

// subcluster reads the bitmap of an extended L2 entry: what is at inside in the
// cluster, and for how many subclusters that are alike.
func (d *disk) subcluster(r run, at, inside int64) (run, error) {
	b, err := d.entry(at+8, "subcluster bitmap")
	if err != nil {
		return r, err
	}
	alloc, zeroes := uint32(b), uint32(b>>32)
	if alloc&zeroes != 0 {
		return r, damaged(at+8, "subcluster bitmap", hex(b), "has subclusters both allocated and zero")
	}
	size := d.h.cluster() / subclusters
	i := inside / size
	same := ^(alloc | zeroes)
	switch bit := uint32(1) << i; {
	case alloc&bit != 0:
		r.kind, same = data, alloc
	case zeroes&bit != 0:
		r.kind, same = zero, zeroes
	}
	alike := min(int64(bits.TrailingZeros32(^(same >> i))), subclusters-i)
	r.n = (i+alike)*size - inside
	return r, nil
}

// entry reads eight bytes of a table.
func (d *disk) entry(at int64, field string) (uint64, error) {
	var b [8]byte
	_, err := d.tables.ReadAt(b[:], at)
	if errors.Is(err, lun.ErrOutOfRange) {
		return 0, damaged(at, field, nil, "lies beyond the file of %d bytes", d.dev.Size())
	}
	return binary.BigEndian.Uint64(b[:]), err
}

func hex(v uint64) string { return fmt.Sprintf("%#x", v) }
