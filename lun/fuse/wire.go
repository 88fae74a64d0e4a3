package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
)

// Requests that are answered (enum fuse_opcode).
type opcode uint32

const (
	opLookup      opcode = 1
	opForget      opcode = 2
	opGetattr     opcode = 3
	opReadlink    opcode = 5
	opOpen        opcode = 14
	opRead        opcode = 15
	opWrite       opcode = 16
	opStatfs      opcode = 17
	opRelease     opcode = 18
	opFsync       opcode = 20
	opGetxattr    opcode = 22
	opListxattr   opcode = 23
	opFlush       opcode = 25
	opInit        opcode = 26
	opOpendir     opcode = 27
	opReaddir     opcode = 28
	opReleasedir  opcode = 29
	opInterrupt   opcode = 36
	opDestroy     opcode = 38
	opBatchForget opcode = 42
	opFallocate   opcode = 43
	opReaddirPlus opcode = 44
	opLseek       opcode = 46
)

// Sizes of fixed parts, in bytes.
const (
	inHeader    = 40
	outHeader   = 16
	readIn      = 40
	writeIn     = 40
	fsyncIn     = 16
	fallocateIn = 32
	initIn      = 16
	initOut     = 64
	attrOut     = 104
	openOut     = 16
	writeOut    = 8
	statfsOut   = 80
	entryOut    = 128
	attrSize    = 88
	dirent      = 24 // before the name
	getxattrIn  = 8
	getxattrOut = 8
	forgetIn    = 8
	forgetsIn   = 8
	forgetOne   = 16
	releaseIn   = 24
	lseekIn     = 24
	lseekOut    = 8
)

// Protocol version: what is spoken here is in all kernels since 3.x with these
// numbers; a newer kernel takes the older of the two.
const (
	major = 7
	minor = 31
	// leastMinor is the oldest whose structures have the sizes above.
	leastMinor = 23
)

// Flags of FUSE_INIT, and of an open file.
const (
	flagAsyncRead    = 1 << 0
	flagBigWrites    = 1 << 5
	flagAsyncDIO     = 1 << 15
	flagReaddirPlus  = 1 << 13
	flagParallelDirs = 1 << 18
	flagPosixACL     = 1 << 20
	flagMaxPages     = 1 << 22
	flagSymlinks     = 1 << 23
	openDirectIO     = 1 << 0
	openKeepCache    = 1 << 1
	openCacheDir     = 1 << 3
	openParallelDIO  = 1 << 6
	fallocKeepSize   = 0x01
	fallocPunchHole  = 0x02
	fallocZeroRange  = 0x10
	rootNode         = 1
	maxIO            = 1 << 20 // bytes of one READ or WRITE
	attrValidSeconds = 1 << 30
)

// request is one that arrived; its slices lie in the worker's buffer.
type request struct {
	op     opcode
	unique uint64
	node   uint64
	body   []byte // after the header
}

var errShort = errors.New("it is shorter than its kind")

// decode checks the header of a whole request and the length of its fixed part.
func decode(b []byte) (r request, err error) {
	if len(b) < inHeader {
		return r, fmt.Errorf("request of %d bytes: %w", len(b), errShort)
	}
	le := binary.NativeEndian
	if n := le.Uint32(b); int64(n) != int64(len(b)) {
		return r, fmt.Errorf("request of %d bytes says that it has %d", len(b), n)
	}
	r = request{op: opcode(le.Uint32(b[4:])), unique: le.Uint64(b[8:]), node: le.Uint64(b[16:]), body: b[inHeader:]}
	least := 0
	switch r.op {
	case opInit:
		least = initIn
	case opRead, opReaddir, opReaddirPlus:
		least = readIn
	case opWrite:
		least = writeIn
	case opFsync:
		least = fsyncIn
	case opFallocate:
		least = fallocateIn
	case opForget:
		least = forgetIn
	case opBatchForget:
		least = forgetsIn
	case opGetxattr, opListxattr:
		least = getxattrIn
	case opRelease, opReleasedir:
		least = releaseIn
	case opLseek:
		least = lseekIn
	}
	if len(r.body) < least {
		return r, fmt.Errorf("%w: request %d with %d bytes", errShort, r.op, len(r.body))
	}
	return r, nil
}

// span is where a READ or WRITE goes: both structures begin alike.
func (r request) span() (off uint64, n uint32) {
	return binary.NativeEndian.Uint64(r.body[8:]), binary.NativeEndian.Uint32(r.body[16:])
}

// putHeader writes the header of an answer of n bytes after it.
func putHeader(b []byte, unique uint64, errno unix.Errno, n int) {
	le := binary.NativeEndian
	le.PutUint32(b, uint32(outHeader+n))
	le.PutUint32(b[4:], uint32(-int32(errno)))
	le.PutUint64(b[8:], unique)
}

// errnoOf is what the kernel is told of a device's error.
func errnoOf(err error) unix.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, lun.ErrNoSpace):
		return unix.ENOSPC
	case errors.Is(err, lun.ErrReadOnly):
		return unix.EROFS
	case errors.Is(err, lun.ErrOutOfRange):
		return unix.EINVAL
	}
	return unix.EIO
}
