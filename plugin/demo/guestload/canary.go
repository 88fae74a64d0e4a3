package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A canary shows whether a copy of a device was made at one instant. Its writer
// puts k near the start, waits until that is stable, puts k near the end, waits,
// and goes on with k+1. At every instant the two values differ by 0 or by 1; a
// copy that took time shows more. Database checks do not notice such a copy.
//
// A value with its magic and checksum lies within one 512-byte sector, the unit
// that a disk writes as a whole; it is written as one block of 4 KiB.
type canary struct{ first, last uint64 }

const (
	canaryBlock = 4096
	canaryMagic = "cleave canary 1\n"
)

// errTorn means that the values were not written one after the other.
var errTorn = errors.New("the copy is not of one instant")

func (c canary) check() error {
	if c.first != c.last && c.first != c.last+1 {
		return fmt.Errorf("canary: %d near the start and %d near the end: %w", c.first, c.last, errTorn)
	}
	return nil
}

func encodeCanary(b []byte, k uint64) {
	clear(b)
	copy(b, canaryMagic)
	binary.BigEndian.PutUint64(b[16:], k)
	binary.BigEndian.PutUint32(b[24:], crc32.ChecksumIEEE(b[:24]))
}

func decodeCanary(b []byte) (uint64, error) {
	if string(b[:16]) != canaryMagic {
		return 0, errors.New("no canary")
	}
	if crc32.ChecksumIEEE(b[:24]) != binary.BigEndian.Uint32(b[24:]) {
		return 0, errors.New("canary with a wrong checksum")
	}
	return binary.BigEndian.Uint64(b[16:]), nil
}

// lastOffset is where the second value lies: the last whole block.
func lastOffset(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if size < 2*canaryBlock {
		return 0, fmt.Errorf("%s: %d bytes, too small for a canary", f.Name(), size)
	}
	return size/canaryBlock*canaryBlock - canaryBlock, nil
}

// runCanary goes on from what the devices hold and writes until ctx ends.
func runCanary(ctx context.Context, first, last string, pause time.Duration) error {
	var k uint64
	if c, err := readCanary(first, last); err == nil {
		k = max(c.first, c.last)
	}
	a, err := openDirect(first)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := openDirect(last)
	if err != nil {
		return err
	}
	defer b.Close()
	end, err := lastOffset(b)
	if err != nil {
		return err
	}
	block := alignedBlock()
	for ctx.Err() == nil {
		k++
		encodeCanary(block, k)
		if err := writeStable(a, block, 0); err != nil {
			return err
		}
		if err := writeStable(b, block, end); err != nil {
			return err
		}
		if err := wait(ctx, pause); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func writeStable(f *os.File, b []byte, at int64) error {
	if _, err := f.WriteAt(b, at); err != nil {
		return err
	}
	return f.Sync()
}

// openDirect opens past the page cache, so that the device sees each write at
// once; file systems without O_DIRECT (tmpfs) get by with Sync alone.
func openDirect(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(name, os.O_RDWR, 0)
	}
	return f, err
}

// alignedBlock is a block whose address O_DIRECT accepts.
func alignedBlock() []byte {
	b := make([]byte, 2*canaryBlock)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (canaryBlock - 1)
	return b[skip : skip+canaryBlock]
}

// readCanary reads both values; it reads any file or device.
func readCanary(first, last string) (canary, error) {
	a, err := os.Open(first)
	if err != nil {
		return canary{}, err
	}
	defer a.Close()
	b, err := os.Open(last)
	if err != nil {
		return canary{}, err
	}
	defer b.Close()
	end, err := lastOffset(b)
	if err != nil {
		return canary{}, err
	}
	var c canary
	block := make([]byte, 512)
	for _, v := range []struct {
		f  *os.File
		at int64
		k  *uint64
	}{{a, 0, &c.first}, {b, end, &c.last}} {
		if _, err := v.f.ReadAt(block, v.at); err != nil {
			return c, err
		}
		k, err := decodeCanary(block)
		if err != nil {
			// Nothing there yet counts as 0: the writer may have been stopped
			// between its very first two writes.
			if string(block) == string(make([]byte, len(block))) {
				continue
			}
			return c, fmt.Errorf("%s, byte %d: %w", v.f.Name(), v.at, err)
		}
		*v.k = k
	}
	if c.first == 0 {
		return c, fmt.Errorf("%s: no canary was ever written", first)
	}
	return c, nil
}
