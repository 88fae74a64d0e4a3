package open

import (
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// hostedFile is a file of a host's file system as a device. It reads by the
// reader of the file system, and writes into blocks that the file has for itself,
// past the file system: neither sizes nor any metadata change.
type hostedFile struct {
	lun.Device // for reading
	file       fs.File
	under      lun.Device // the volume, for writing; nil: not at all
}

var (
	_ vdisk.Writabler = (*hostedFile)(nil)
	_ lun.Mapper      = (*hostedFile)(nil)
)

// openHosted opens a regular file. Writes go to under; nil refuses them.
func openHosted(f fs.FS, r fs.Ref, under lun.Device) (lun.Device, error) {
	o, err := f.Open(r)
	if err != nil {
		return nil, err
	}
	// Only these keep no checksum of data and never move it.
	if k := f.Info().Kind; k != "ext4" && k != "xfs" {
		under = nil
	}
	return &hostedFile{Device: fs.Device(o), file: o, under: under}, nil
}

func (d *hostedFile) Extents(off, n int64, fn func(lun.Extent) error) error {
	return vdisk.Extents(d.Device, off, n, fn)
}

// Writable implements vdisk.Writabler.
func (d *hostedFile) Writable(off, n int64) error {
	return d.runs(off, n, func(fs.Extent) error { return nil })
}

// runs calls fn for the runs that may be written to, and is an error at the first
// that may not.
func (d *hostedFile) runs(off, n int64, fn func(fs.Extent) error) error {
	if d.under == nil {
		return lun.ErrReadOnly
	}
	if err := lun.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	return d.file.Extents(off, n, func(e fs.Extent) error {
		switch {
		case e.Kind != fs.Data:
			return fmt.Errorf("byte %d of the file on the host's volume is %v: %w", e.Off, e.Kind, vdisk.ErrNotAllocated)
		case e.Shared:
			return fmt.Errorf("byte %d of the file on the host's volume is shared: %w", e.Off, vdisk.ErrNotAllocated)
		}
		if err := lun.CheckRange(e.Device, e.Len, d.under.Size()); err != nil {
			return err
		}
		return fn(e)
	})
}

// WriteAt writes in place. Nothing is written unless all of it can be.
func (d *hostedFile) WriteAt(p []byte, off int64) (int, error) {
	if err := d.Writable(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	err := d.runs(off, int64(len(p)), func(e fs.Extent) error {
		n, err := d.under.WriteAt(p[done:][:e.Len], e.Device)
		done += n
		return err
	})
	return done, err
}

func (d *hostedFile) Sync() error {
	if d.under == nil {
		return nil
	}
	return d.under.Sync()
}

// hostedVolume is a volume of a host as a disk, which not every kind lets be
// written.
type hostedVolume struct {
	lun.Device            // for reading
	under      lun.Device // for writing; nil: not at all
}

var _ vdisk.Writabler = (*hostedVolume)(nil)

func (d *hostedVolume) Extents(off, n int64, fn func(lun.Extent) error) error {
	return vdisk.Extents(d.Device, off, n, fn)
}

// Writable implements vdisk.Writabler.
func (d *hostedVolume) Writable(off, n int64) error {
	if d.under == nil {
		return lun.ErrReadOnly
	}
	return lun.CheckRange(off, n, d.under.Size())
}

func (d *hostedVolume) WriteAt(p []byte, off int64) (int, error) {
	if err := d.Writable(off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.under.WriteAt(p, off)
}

func (d *hostedVolume) Sync() error {
	if d.under == nil {
		return nil
	}
	return d.under.Sync()
}

// part is a partition that may be written to.
type part struct{ section }

func (p *part) WriteAt(b []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(b)), p.n); err != nil {
		return 0, err
	}
	return p.dev.WriteAt(b, p.off+off)
}

func (p *part) Sync() error { return p.dev.Sync() }
