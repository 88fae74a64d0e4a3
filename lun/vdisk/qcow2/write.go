package qcow2

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

func (d *disk) Writable(off, n int64) error {
	if d.info.ReadOnly != nil {
		return d.info.ReadOnly
	}
	if err := lun.CheckRange(off, n, d.size); err != nil {
		return err
	}
	for end := off + n; off < end; {
		r, err := d.lookup(off, end-off)
		if err != nil {
			return err
		}
		if err := d.ours(r, off); err != nil {
			return err
		}
		off += r.n
	}
	return nil
}

// ours reports whether run r, at guest offset off, may be written.
func (d *disk) ours(r run, off int64) error {
	refuse := func(why string) error {
		return fmt.Errorf("qcow2 disk at byte %d: %w: %s", off, vdisk.ErrNotAllocated, why)
	}
	switch {
	case r.kind != data:
		return refuse("the cluster is " + r.kind.String())
	case !r.own:
		return refuse("the cluster is not marked COPIED, so that a snapshot may share it")
	case r.host+r.n > d.data.Size():
		return refuse("the file ends inside the cluster")
	}
	if err := vdisk.Writable(d.data, r.host, r.n); err != nil {
		return err
	}
	if d.h.has(externalDataBit) {
		return nil // no refcounts: the data file has a place of its own for every cluster
	}
	if err := d.loadGuard(); err != nil {
		return err
	}
	first, last := r.host>>d.h.clusterBits, (r.host+r.n-1)>>d.h.clusterBits
	if i, found := slices.BinarySearch(d.guard, first); found || i < len(d.guard) && d.guard[i] <= last {
		return damaged(r.host, "data cluster", off, "is one of the disk's own tables, too: run qemu-img check")
	}
	for c := first; c <= last; c++ {
		n, err := d.refcount(c)
		if err != nil {
			return err
		}
		if n != 1 {
			return refuse(fmt.Sprintf("its refcount is %d", n))
		}
	}
	return nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.Writable(off, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := d.clearFeatures(); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		r, err := d.lookup(off+int64(n), int64(len(p)-n))
		if err != nil {
			return n, err
		}
		m, err := d.data.WriteAt(p[n:n+int(r.n)], r.host)
		n += m
		if err != nil {
			return n, fmt.Errorf("write %d bytes at byte %d: %w", r.n, r.host, err)
		}
	}
	return len(p), nil
}

func (d *disk) Sync() error {
	if d.info.ReadOnly != nil {
		return nil
	}
	if err := d.data.Sync(); err != nil || !d.external {
		return err
	}
	return d.dev.Sync()
}

// clearFeatures clears, once, the autoclear features that a write makes untrue:
// all but the one that says that the external data file is the raw disk. It is
// stable before the first write.
func (d *disk) clearFeatures() error {
	d.clearing.Lock()
	defer d.clearing.Unlock()
	left := d.h.autoclear & rawExternalBit
	if d.cleared || left == d.h.autoclear {
		return nil
	}
	block := int64(512)
	if b, ok := d.dev.(lun.Blocker); ok {
		logical, _ := b.Blocks()
		block = max(block, int64(logical))
	}
	b := make([]byte, min(block, d.dev.Size()))
	if _, err := d.dev.ReadAt(b, 0); err != nil {
		return fmt.Errorf("read the qcow2 header: %w", err)
	}
	binary.BigEndian.PutUint64(b[autoclearOffset:], left)
	if _, err := d.dev.WriteAt(b, 0); err != nil {
		return fmt.Errorf("clear autoclear_features in the qcow2 header: %w", err)
	}
	if err := d.dev.Sync(); err != nil {
		return fmt.Errorf("clear autoclear_features in the qcow2 header: %w", err)
	}
	d.cleared = true
	return nil
}

// checkRefcounts says why the refcount table can't be used.
func (d *disk) checkRefcounts() error {
	switch {
	case d.h.refEntries*8 > maxReftable:
		return damaged(56, "refcount_table_clusters", d.h.refEntries*8>>d.h.clusterBits, "is more than %d bytes", maxReftable)
	case d.h.refcounts <= 0 || d.h.refcounts&(d.h.cluster()-1) != 0:
		return damaged(48, "refcount_table_offset", d.h.refcounts, "is not at the start of a cluster of %d bytes", d.h.cluster())
	case d.h.refEntries*8 > d.dev.Size()-d.h.refcounts:
		return damaged(48, "refcount_table_offset", d.h.refcounts, "the table ends beyond the file of %d bytes", d.dev.Size())
	}
	return nil
}

// refcount is how many times host cluster c is used.
func (d *disk) refcount(c int64) (uint64, error) {
	width := int64(1) << d.h.refOrder // bits
	perBlock := d.h.cluster() * 8 / width
	i := c / perBlock
	if i >= d.h.refEntries {
		return 0, nil
	}
	block, err := d.entry(d.h.refcounts+i*8, "refcount table entry")
	if err != nil || block == 0 {
		return 0, err
	}
	if block&uint64(d.h.cluster()-1) != 0 || block >= uint64(d.dev.Size()) {
		return 0, damaged(d.h.refcounts+i*8, "refcount table entry", hex(block), "is not the start of a cluster in the file")
	}
	bit := c % perBlock * width
	var b [8]byte
	n := max(width/8, 1)
	if err := d.readTable(b[8-n:], int64(block)+bit/8, "refcount"); err != nil {
		return 0, err
	}
	v := binary.BigEndian.Uint64(b[:])
	if width < 8 {
		v = v >> (bit % 8) & (1<<width - 1)
	}
	return v, nil
}

// loadGuard lists, once, the host clusters that hold tables, so that a damaged
// disk does not have them overwritten as data. Its size is bounded by those of
// the L1 and refcount tables: 40 MiB at the very most, and 16 KiB for a disk of
// a terabyte.
func (d *disk) loadGuard() error {
	d.guarding.Lock()
	defer d.guarding.Unlock()
	if d.guard != nil {
		return nil
	}
	var list []int64
	add := func(off, n int64) {
		for c := off >> d.h.clusterBits; n > 0 && c <= (off+n-1)>>d.h.clusterBits; c++ {
			list = append(list, c)
		}
	}
	add(0, 1)
	add(d.h.l1.off, d.h.l1.entries*8)
	add(d.h.refcounts, d.h.refEntries*8)
	add(d.h.snapshotsOff, d.snapshotBytes)
	for _, t := range []struct {
		table
		mask uint64
		name string
	}{{d.h.l1, offsetMask, "L1 entry"}, {table{d.h.refcounts, d.h.refEntries}, ^uint64(511), "refcount table entry"}} {
		for i := range t.entries {
			e, err := d.entry(t.off+i*8, t.name)
			if err != nil {
				return err
			}
			if e &= t.mask; e != 0 {
				list = append(list, int64(e>>d.h.clusterBits))
			}
		}
	}
	slices.Sort(list)
	d.guard = slices.Clip(slices.Compact(list))
	return nil
}
