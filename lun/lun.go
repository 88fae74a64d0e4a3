package lun

import (
	"context"
	"errors"
	"io"
	"os"
)

// Device is a block device, or something that behaves as one.
//
// Offsets and sizes are bytes. A Device need not support transfers that are
// not multiples of its logical block; callers that serve others stick to
// blocks (see Blocker). All methods may be called at once from several
// goroutines. Transfers that overlap, one of which is a write, have no order
// among them, as on any disk.
//
// A Device is not closed by those who use it: whoever opened it owns it, and
// closes it if it is an io.Closer.
type Device interface {
	// ReadAt fills p from offset off. Unlike io.ReaderAt's general contract it
	// never returns a short count without an error; reading past Size is
	// ErrOutOfRange and transfers nothing.
	io.ReaderAt

	// WriteAt writes p at offset off. When it returns nil the data is seen by
	// every later ReadAt; it is stable only after the next Sync that began
	// after it returned. After an error any part of the range may hold old or
	// new data. A Device that can't be written answers ErrReadOnly.
	io.WriterAt

	// Size is the size in bytes. It never shrinks while the Device is open.
	Size() int64

	// Sync makes every write that was acknowledged before the call stable.
	// After an error nothing may be assumed stable, even if a later Sync
	// succeeds.
	Sync() error
}

// Trimmer is a Device that can give space back. After Trim returns, the range
// reads as zeroes. Ranges are hints in whole blocks; a Trimmer may write
// zeroes where it can't release.
type Trimmer interface {
	Trim(off, n int64) error
}

// Zeroer is a Device that can write zeroes without being handed them. Unlike
// Trim, the space stays reserved.
type Zeroer interface {
	WriteZeroes(off, n int64) error
}

// Extent is a run of a Device that is alike: data, or a hole that reads as
// zeroes.
type Extent struct {
	Off, Len int64
	Hole     bool
}

// Mapper is a Device that knows its holes. Extents calls fn for consecutive
// runs that cover [off, off+n) in order; it stops at fn's first error and
// returns it. A hole always reads as zeroes; data may.
type Mapper interface {
	Extents(off, n int64, fn func(Extent) error) error
}

// Blocker is a Device with a say about its block sizes, in bytes, powers of
// two. A Device without it has logical and physical blocks of 512 bytes.
type Blocker interface {
	Blocks() (logical, physical int)
}

// Filer is a Device that is exactly one open file of this host, from its first
// byte to its last: the descriptor may be handed to another process instead of
// the Device. The file stays owned by the Device.
type Filer interface {
	File() *os.File
}

// Lender is a Device that a process of its own can serve in place of this one.
type Lender interface {
	// Lend has a process answer whoever speaks NBD at the other end of conn, for
	// reading only, until that end is closed, and returns its ID once it does. It
	// outlives this process and the Device, which may be closed. conn stays the
	// caller's to close.
	Lend(ctx context.Context, conn *os.File) (pid int, err error)
}

// Errors of a Device. They are compared with errors.Is and wrapped with the
// name of what they happened to.
var (
	ErrReadOnly   = errors.New("device is read-only")
	ErrOutOfRange = errors.New("beyond the end of the device")
	ErrNoSpace    = errors.New("no space left for the write")
	ErrClosed     = errors.New("device is closed")
)

// CheckRange reports whether a transfer of n bytes at off lies within size
// bytes, as ErrOutOfRange if not. It is safe against overflow.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return ErrOutOfRange
	}
	return nil
}
