package qcow2

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// maxTables bounds the pages of tables that one disk keeps.
const maxTables = 512 << 10

// disk is an opened qcow2 disk. Tables are never changed in place, so that all
// but clearing and guard is immutable.
type disk struct {
	dev      lun.Device // header and tables
	data     lun.Device // data clusters: dev, or the external data file
	backing  vdisk.Disk // nil: none
	external bool       // data is a file of its own, and ours to close
	h        *header
	l1       table // the active one, or a snapshot's
	size     int64
	tables   *vdisk.Pages
	unpack   *unpacker
	info     vdisk.Info

	snapshotBytes int64

	clearing sync.Mutex
	cleared  bool // autoclear features

	guarding sync.Mutex
	guard    []int64 // sorted numbers of host clusters that hold tables
}

// Open opens a qcow2 disk; it is a vdisk.OpenFunc. A backing file is opened if
// the header names its format as "qcow2", "raw" or one of Options.Formats; where
// the header does not name it, its first bytes decide, with a warning.
func Open(dev lun.Device, o vdisk.Options) (_ vdisk.Disk, err error) {
	tables := vdisk.NewPages(dev, maxTables)
	h, err := readHeader(tables, dev.Size())
	if err != nil {
		return nil, err
	}
	d := &disk{dev: dev, data: dev, h: h, l1: h.l1, size: h.size, tables: tables, unpack: newUnpacker(dev, h)}
	d.info = vdisk.Info{Format: format, Variant: fmt.Sprintf("v%d", h.version), Block: h.cluster(), Dirty: h.has(dirtyBit)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if err := d.openSnapshots(o.Snapshot); err != nil {
		return nil, err
	}
	d.info.Size = d.size
	d.judge(o)
	if h.has(externalDataBit) {
		o := o
		o.ReadOnly = d.info.ReadOnly != nil
		if d.data, err = o.File(h.dataFile); err != nil {
			return nil, fmt.Errorf("external data file: %w", err)
		}
		d.external = true
		d.info.Files = []string{h.dataFile}
	}
	return d, d.openBacking(o)
}

// openSnapshots reads the snapshot table. Without it the active state is read
// all the same.
func (d *disk) openSnapshots(name string) error {
	list, err := d.readSnapshots()
	for _, s := range list {
		d.info.Snapshots = append(d.info.Snapshots, s.Snapshot)
	}
	if err != nil {
		d.warn(err)
	}
	if name == "" {
		return nil
	}
	return d.choose(list, name)
}

// judge decides whether the disk can be written.
func (d *disk) judge(o vdisk.Options) {
	why := func(s string) { d.info.ReadOnly = fmt.Errorf("%w: %s", lun.ErrReadOnly, s) }
	if d.info.Dirty {
		d.warn(errors.New("the qcow2 disk was not closed cleanly: its content is right, its refcounts may not be; it is only read"))
		why("the qcow2 disk was not closed cleanly, run qemu-img check -r all on a copy first")
	}
	if err := d.checkRefcounts(); err != nil {
		d.warn(err)
		why(err.Error())
	}
	if o.Snapshot != "" {
		why("it is an internal snapshot")
	}
	if o.ReadOnly {
		d.info.ReadOnly = lun.ErrReadOnly
	}
}

func (d *disk) warn(err error) { d.info.Warnings = append(d.info.Warnings, err) }

func (d *disk) openBacking(o vdisk.Options) error {
	if d.h.backing == "" {
		return nil
	}
	f := d.h.backingFormat
	own := vdisk.OpenFunc(Open)
	if f == "" {
		d.warn(fmt.Errorf("the header does not say of what format the backing file %.200q is: its first bytes decided", d.h.backing))
		f, own = format, guess
	}
	b, err := o.Parent(d.h.backing, f, format, own)
	if err != nil {
		return fmt.Errorf("backing file: %w", err)
	}
	d.backing = b
	d.info.Parents = vdisk.Chain(d.h.backing, b)
	for _, w := range b.Info().Warnings {
		d.warn(fmt.Errorf("backing file %.200q: %w", d.h.backing, w))
	}
	return nil
}

// guess opens what has the magic as qcow2, and anything else as raw.
func guess(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
	b, err := Open(dev, o)
	if errors.Is(err, lun.ErrNotFormat) {
		return vdisk.Raw(dev, o)
	}
	return b, err
}

func (d *disk) Size() int64      { return d.size }
func (d *disk) Info() vdisk.Info { return d.info }

// Blocks are those of the device below, since clusters are aligned to them.
func (d *disk) Blocks() (logical, physical int) {
	if b, ok := d.data.(lun.Blocker); ok {
		return b.Blocks()
	}
	return 512, 512
}

// Close closes the backing file and the external data file.
func (d *disk) Close() error {
	var err error
	if d.backing != nil {
		err = d.backing.Close()
	}
	if d.external {
		err = errors.Join(err, vdisk.Close(d.data))
	}
	return err
}
