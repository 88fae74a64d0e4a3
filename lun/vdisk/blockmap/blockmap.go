// Package blockmap makes a vdisk.Disk of a function that says where each run of
// the guest's bytes lies: in a block of the container's own, in a parent, in a
// compressed piece, or nowhere. The container packages (vhd, vhdx, vmdk) hold
// the function and the tables it looks into; reading across runs, the rules of
// writing in place and the map of holes are here, once.
//
// A Disk may be used by several goroutines; so must the function.
package blockmap

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// Kind is where a run's bytes come from.
type Kind uint8

const (
	Zero   Kind = iota // nowhere: they read as zeroes
	Own                // Run.Dev, in a block that nothing else uses: writable
	Shared             // Run.Dev, which belongs to another layer
	Packed             // Run.Unpack: compressed, or otherwise not in place
)

// String is the kind in words.
func (k Kind) String() string {
	switch k {
	case Zero:
		return "zero"
	case Own:
		return "own"
	case Shared:
		return "shared"
	case Packed:
		return "packed"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Run is a run of bytes of one kind.
type Run struct {
	Kind   Kind
	Len    int64                  // bytes, more than none
	Dev    lun.Device             // of Own and Shared
	Off    int64                  // in Dev, or in what Unpack returns
	Unpack func() ([]byte, error) // of Packed: at least Off+Len bytes, not to be changed
}

// Map says what lies at off. Its run is no longer than n bytes, and off and n
// are always within the disk.
type Map func(off, n int64) (Run, error)

// Config is what a Disk is made of.
type Config struct {
	Map  Map
	Info vdisk.Info
	// Writes are the devices that Own runs lie on, for Sync.
	Writes []lun.Device
	// Check is asked once, before the first write or the first answer of
	// Writable, whether the tables may be trusted with a write: two blocks
	// that share bytes of the file would corrupt each other. nil: no check.
	Check func() error
	// First is called once before the first byte is written, to say in the
	// container that its content changes. nil: nothing to say.
	First func() error
	// Close closes what was opened. nil: nothing.
	Close func() error
}

// Disk is a vdisk.Disk over a Map.
type Disk struct {
	c Config

	mu      sync.Mutex // guards what follows
	checked bool
	check   error
	begun   bool
}

var _ vdisk.Disk = (*Disk)(nil)

// New makes a disk; its size is c.Info.Size.
func New(c Config) *Disk { return &Disk{c: c} }

// Size is the size of the disk that the guest sees, in bytes.
func (d *Disk) Size() int64 { return d.c.Info.Size }

// Info describes the container.
func (d *Disk) Info() vdisk.Info { return d.c.Info }

// Close closes parents and further files.
func (d *Disk) Close() error {
	if d.c.Close == nil {
		return nil
	}
	return d.c.Close()
}

// walk calls fn for the runs of [off, off+n) in order.
func (d *Disk) walk(off, n int64, fn func(at int64, r Run) error) error {
	if err := lun.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	for n > 0 {
		r, err := d.c.Map(off, n)
		if err != nil {
			return err
		}
		if r.Len <= 0 || r.Len > n {
			return fmt.Errorf("%s: a run of %d bytes at byte %d of the disk", d.c.Info.Format, r.Len, off)
		}
		if err := fn(off, r); err != nil {
			return err
		}
		off, n = off+r.Len, n-r.Len
	}
	return nil
}

// ReadAt reads the guest's bytes.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	err := d.walk(off, int64(len(p)), func(_ int64, r Run) error {
		b := p[done:][:r.Len]
		if err := r.read(b); err != nil {
			return err
		}
		done += len(b)
		return nil
	})
	return done, err
}

func (r Run) read(b []byte) error {
	switch r.Kind {
	case Zero:
		clear(b)
		return nil
	case Own, Shared:
		_, err := r.Dev.ReadAt(b, r.Off)
		return err
	case Packed:
		data, err := r.Unpack()
		if err != nil {
			return err
		}
		if err := lun.CheckRange(r.Off, int64(len(b)), int64(len(data))); err != nil {
			return err
		}
		copy(b, data[r.Off:])
		return nil
	}
	return errors.New("read a run of " + r.Kind.String())
}

// Writable says whether [off, off+n) lies in blocks of the container's own.
func (d *Disk) Writable(off, n int64) error {
	if d.c.Info.ReadOnly != nil {
		if errors.Is(d.c.Info.ReadOnly, lun.ErrReadOnly) {
			return d.c.Info.ReadOnly
		}
		return fmt.Errorf("%w: %w", lun.ErrReadOnly, d.c.Info.ReadOnly)
	}
	if err := lun.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	if err := d.trusted(); err != nil {
		return err
	}
	return d.walk(off, n, func(at int64, r Run) error {
		if r.Kind != Own {
			return fmt.Errorf("%s: byte %d of the disk: %w", d.c.Info.Format, at, vdisk.ErrNotAllocated)
		}
		return vdisk.Writable(r.Dev, r.Off, r.Len)
	})
}

// trusted asks Config.Check once; the answer stays.
func (d *Disk) trusted() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.checked && d.c.Check != nil {
		d.check = d.c.Check()
	}
	d.checked = true
	return d.check
}

// WriteAt writes in place. Nothing is written unless all of it can be.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.Writable(off, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := d.begin(); err != nil {
		return 0, err
	}
	done := 0
	err := d.walk(off, int64(len(p)), func(_ int64, r Run) error {
		n, err := r.Dev.WriteAt(p[done:][:r.Len], r.Off)
		done += n
		return err
	})
	return done, err
}

// begin calls Config.First until it has succeeded once.
func (d *Disk) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.begun && d.c.First != nil {
		if err := d.c.First(); err != nil {
			return fmt.Errorf("%s: note in the header that the content changes: %w", d.c.Info.Format, err)
		}
	}
	d.begun = true
	return nil
}

// Sync makes the writes stable on every device that they went to.
func (d *Disk) Sync() error {
	if d.c.Info.ReadOnly != nil {
		return nil
	}
	var errs []error
	for _, dev := range d.c.Writes {
		errs = append(errs, dev.Sync())
	}
	return errors.Join(errs...)
}

// Extents reports as holes what no layer has.
func (d *Disk) Extents(off, n int64, fn func(lun.Extent) error) error {
	var last lun.Extent
	add := func(e lun.Extent) error {
		if last.Len > 0 && last.Hole == e.Hole {
			last.Len += e.Len
			return nil
		}
		done := last
		last = e
		if done.Len == 0 {
			return nil
		}
		return fn(done)
	}
	err := d.walk(off, n, func(at int64, r Run) error {
		if r.Kind != Shared {
			return add(lun.Extent{Off: at, Len: r.Len, Hole: r.Kind == Zero})
		}
		return vdisk.Extents(r.Dev, r.Off, r.Len, func(e lun.Extent) error {
			e.Off += at - r.Off
			return add(e)
		})
	})
	if err != nil || last.Len == 0 {
		return err
	}
	return fn(last)
}

// Parent is the run for what a child leaves to its parent, which may be smaller
// (or nil: no parent, so zeroes).
func Parent(parent lun.Device, off, n int64) Run {
	if parent == nil || off >= parent.Size() {
		return Run{Kind: Zero, Len: n}
	}
	return Run{Kind: Shared, Len: min(n, parent.Size()-off), Dev: parent, Off: off}
}
