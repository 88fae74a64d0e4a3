package vdisk

import (
	"errors"
	"io"

	"github.com/cleave-san/cleave/lun"
)

// Disk is the content of a container: the bytes that a guest sees.
//
// Reads and writes may run at once, as lun.Device promises. Extents reports as
// holes the blocks that the tables call absent or zero in every layer. Close
// closes what the resolver opened, and not the device that Open was given;
// nothing may run beside it or come after it.
type Disk interface {
	lun.Device
	lun.Mapper
	io.Closer

	// Info describes the container. It does not change while the disk is open.
	Info() Info

	// Writable reports whether WriteAt would take a write of n bytes at off:
	// nil, lun.ErrReadOnly, lun.ErrOutOfRange, ErrNotAllocated, or the error
	// of reading the tables. It writes nothing. A recovery asks for all that it
	// means to write before it writes anything.
	Writable(off, n int64) error
}

// Writabler is a device that does not take writes everywhere: a file whose blocks
// are not all its own. Writable is as in Disk.
type Writabler interface {
	Writable(off, n int64) error
}

// Writable asks a device that lies under a disk whether it takes a write. One that
// is no Writabler does.
func Writable(d lun.Device, off, n int64) error {
	if w, ok := d.(Writabler); ok {
		return w.Writable(off, n)
	}
	return lun.CheckRange(off, n, d.Size())
}

// Info describes a container. Sizes are bytes.
type Info struct {
	Format  string // "raw", "qcow2", "vhd", "vhdx", "vmdk"
	Variant string // in the format's own words: "v3", "dynamic", "streamOptimized"; may be empty
	Size    int64  // of the disk that the guest sees
	Block   int64  // unit of allocation; 0 where there is none

	Dirty bool // not closed cleanly: content is right, counters may not be

	// ReadOnly says why the disk can't be written in place; nil if it can.
	ReadOnly error

	Parents   []Layer    // backing files or parents, the nearest first
	Files     []string   // names of further files that hold this layer's data
	Snapshots []Snapshot // internal ones
	// Warnings are for the operator: the disk is read in spite of them.
	Warnings []error
}

// Layer is one parent of a disk.
type Layer struct {
	Name   string // as its child's header has it
	Format string
	Size   int64
}

// Snapshot is one that the container keeps inside itself.
type Snapshot struct {
	ID, Name string
	Size     int64 // of the disk then; 0 if not recorded
	Unix     int64 // time by its maker's clock, in seconds
}

// Errors of containers. They are compared with errors.Is.
var (
	// ErrNotAllocated says that a write would need a block that the container
	// does not have for itself: absent, zero, compressed, or shared with a
	// snapshot.
	ErrNotAllocated = errors.New("the container holds no block of its own there, and is written in place only")

	// ErrOtherFile says that the container needs another file and the resolver
	// would not open it.
	ErrOtherFile = errors.New("the container needs another file")

	// ErrNoSnapshot says that no one internal snapshot is called so.
	ErrNoSnapshot = errors.New("no such internal snapshot")

	// ErrDepth says that a chain of parents is longer than Options.Depth, or
	// goes round in a circle.
	ErrDepth = errors.New("too many parents in a chain, or one that is its own parent")
)
