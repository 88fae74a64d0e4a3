package initiator

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// Most bytes of one command that moves none: a slow target has to end it in time.
const (
	zeroMax  = 64 << 20
	unmapMax = 256 << 20
)

// Trim makes the range read as zeroes, and releases its space where the LUN can
// do both: WRITE SAME with the UNMAP bit promises it; UNMAP alone is a hint, so
// what GET LBA STATUS still shows as mapped after it is zeroed.
func (d *Disk) Trim(off, n int64) error {
	f := &d.facts
	switch {
	case f.writeSameUnmap:
		return d.zeroes(off, n, true)
	case f.unmap && f.zeroes:
		if err := d.Unmap(off, n); err != nil {
			return err
		}
		return d.Extents(off, n, func(e lun.Extent) error {
			if e.Hole {
				return nil
			}
			return d.zeroes(e.Off, e.Len, false)
		})
	}
	return d.zeroes(off, n, false)
}

// WriteZeroes makes the range read as zeroes, with its space kept.
func (d *Disk) WriteZeroes(off, n int64) error { return d.zeroes(off, n, false) }

// Unmap tells the LUN that the content of the range is of no use any more. What is
// read there after it is not said, and it may ignore it. Parts of blocks are
// left alone.
func (d *Disk) Unmap(off, n int64) error {
	if err := d.check(off, n, true); err != nil {
		return err
	}
	block := int64(d.facts.block)
	from, to := (off+block-1)&^(block-1), (off+n)&^(block-1)
	most := int64(unmapMax)
	if m := d.facts.maxUnmap; m > 0 && m < uint64(most/block) {
		most = int64(m) * block
	}
	if !d.facts.unmap {
		return nil
	}
	return d.each(from, to, most, "UNMAP", func(first uint64, blocks uint32) error {
		_, err := d.run(unmapCommand(first, blocks), true)
		return err
	})
}

// each calls fn for pieces of [from, to), which are whole blocks, as changes.
func (d *Disk) each(from, to, most int64, name string, fn func(first uint64, blocks uint32) error) error {
	d.part.RLock()
	defer d.part.RUnlock()
	block := int64(d.facts.block)
	for from < to {
		n := min(most, to-from)
		if err := fn(uint64(from/block), uint32(n/block)); err != nil {
			return fmt.Errorf("%s: %s of %d bytes at %d: %w", d.name, name, n, from, err)
		}
		from += n
	}
	return nil
}

// zeroes writes zeroes, by WRITE SAME where the LUN knows it.
func (d *Disk) zeroes(off, n int64, unmap bool) error {
	if err := d.check(off, n, true); err != nil {
		return err
	}
	block := int64(d.facts.block)
	from, to := (off+block-1)&^(block-1), (off+n)&^(block-1)
	if from > to {
		from, to = off, off // within one block
	}
	if err := d.plainZeroes(off, from); err != nil {
		return err
	}
	if err := d.plainZeroes(max(to, from), off+n); err != nil {
		return err
	}
	if d.noWriteSame.Load() {
		return d.plainZeroes(from, to)
	}
	most := int64(zeroMax)
	if m := d.facts.maxWriteSame; m > 0 && m < uint64(most/block) {
		most = int64(m) * block
	}
	zero := make([]byte, block)
	err := d.each(from, to, most, "WRITE SAME", func(first uint64, blocks uint32) error {
		_, err := d.run(&command{cdb: writeSameCDB(unmap, first, blocks), out: zero}, true)
		return err
	})
	var sense *SenseError
	if errors.As(err, &sense) && sense.unsupported() {
		if sense.code() == codeInvalidOpcode {
			d.noWriteSame.Store(true)
		}
		return d.plainZeroes(from, to)
	}
	return err
}

// plainZeroes writes zeroes as data.
func (d *Disk) plainZeroes(from, to int64) error {
	if from >= to {
		return nil
	}
	zero := make([]byte, min(to-from, 1<<20))
	for from < to {
		n := min(to-from, int64(len(zero)))
		if _, err := d.WriteAt(zero[:n], from); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// Extents asks the LUN what is mapped (GET LBA STATUS, SBC-3 section 5.10). Where
// it doesn't say, or what isn't mapped may read as anything, all is data.
func (d *Disk) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := d.check(off, n, false); err != nil {
		return err
	}
	end := off + n
	if !d.facts.thin || !d.facts.zeroes {
		if n == 0 {
			return nil
		}
		return fn(lun.Extent{Off: off, Len: n})
	}
	var buf [8 + 16*256]byte
	for off < end {
		got, err := d.status(buf[:], off)
		if err != nil {
			return err
		}
		if len(got) == 0 {
			return fn(lun.Extent{Off: off, Len: end - off})
		}
		for _, e := range got {
			if e.Len = min(e.Off+e.Len, end) - off; e.Len <= 0 {
				break
			}
			e.Off = off
			if err := fn(e); err != nil {
				return err
			}
			off += e.Len
		}
	}
	return nil
}

// status is one GET LBA STATUS from the block of off on: runs without a gap, none
// if the LUN doesn't say.
func (d *Disk) status(buf []byte, off int64) ([]lun.Extent, error) {
	at := uint64(off) / uint64(d.facts.block)
	n, err := d.run(&command{cdb: serviceCDB(serviceLBAStatus, at, len(buf)), in: buf}, false)
	var sense *SenseError
	if errors.As(err, &sense) && sense.unsupported() {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: GET LBA STATUS at %d: %w", d.name, off, err)
	}
	return d.extents(buf[:n], int64(at)*int64(d.facts.block)), nil
}

// extents reads the descriptors of GET LBA STATUS, which are to follow one
// another from off on; what doesn't is not looked at.
func (d *Disk) extents(b []byte, off int64) (out []lun.Extent) {
	block := uint64(d.facts.block)
	at, end := uint64(off)/block, uint64(d.facts.size)/block
	for b = b[min(8, len(b)):]; len(b) >= 16 && at < end; b = b[16:] {
		first, blocks := binary.BigEndian.Uint64(b), uint64(binary.BigEndian.Uint32(b[8:]))
		if first > at || at-first >= blocks {
			break
		}
		// The first may begin before the block that was asked for.
		blocks = min(blocks-(at-first), end-at)
		hole := b[12]&0x0f == 1 // deallocated
		out = append(out, lun.Extent{Off: int64(at * block), Len: int64(blocks * block), Hole: hole})
		at += blocks
	}
	return out
}
