package jbd2

import (
	"fmt"
	"io"
)

// maxBlocks bounds how many blocks a journal may bring back, and how many it
// may revoke. A journal of mke2fs has at most 10 million blocks of its own;
// those that are ever full have some 100,000.
const maxBlocks = 2 << 20

// Log is what a journal holds.
type Log struct {
	// Transactions that are committed and not yet in their places.
	Transactions int
	// Blocks that they bring, each counted once.
	Blocks int

	s     *super
	j     io.ReaderAt
	end   uint32 // sequence of the first transaction that doesn't count
	place map[uint64]copied
}

// copied is where a block's newest content is.
type copied struct {
	block    uint32 // of the journal
	sequence uint32
	escaped  bool // its first four bytes are the journal's magic number
}

// Read reads a journal: j is its content, size its length in bytes, blockSize
// that of the file system. blocks is how many that has.
func Read(j io.ReaderAt, size, blockSize int64, blocks uint64) (*Log, error) {
	b := make([]byte, superSize)
	if _, err := j.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("journal superblock: %w", err)
	}
	s, err := parseSuper(b, blockSize, size)
	if err != nil {
		return nil, err
	}
	l := &Log{s: s, j: j, place: make(map[uint64]copied), end: s.sequence}
	if s.start == 0 {
		return l, nil
	}
	if err := l.scan(); err != nil {
		return nil, err
	}
	p := &pass{l: l, limit: blocks, revoked: make(map[uint64]uint32)}
	for _, f := range []func(uint32, uint32, []byte) error{p.revoke, p.replay} {
		if err := l.each(f); err != nil {
			return nil, err
		}
	}
	l.Blocks = len(l.place)
	return l, l.fastCommits()
}

// Empty reports whether nothing is to be replayed.
func (l *Log) Empty() bool { return l.s.start == 0 }

// wrap is a block of the log that may be past its end.
func (s *super) wrap(block uint32) uint32 {
	if block >= s.last {
		block -= s.last - s.first
	}
	return block
}

func (l *Log) read(b []byte, block uint32) error {
	if _, err := l.j.ReadAt(b, int64(block)*l.s.blockSize); err != nil {
		return fmt.Errorf("journal block %d: %w", block, err)
	}
	return nil
}

// header returns the type of a block of the journal's own, 0 if it isn't one of
// this transaction.
func header(b []byte, sequence uint32) uint32 {
	if be.Uint32(b) != magic || be.Uint32(b[8:]) != sequence {
		return 0
	}
	return be.Uint32(b[4:])
}

// scan finds the end: PASS_SCAN.
func (l *Log) scan() error {
	s := l.s
	b := make([]byte, s.blockSize)
	at, sequence := s.start, s.sequence
	var (
		lastTime uint64
		suspect  bool               // a checksum was wrong: an old transaction's, or damage
		sum      = ^uint32(0)       // of the transaction so far, compatChecksum
		failed   bool               // an asynchronous commit was torn
		end      uint32             // that commit
		left     = s.last - s.first // blocks of the log not gone through
	)
	step := func(n uint32) bool {
		if n > left {
			return false
		}
		left -= n
		at = s.wrap(at + n)
		return true
	}
	for left > 0 {
		if err := l.read(b, at); err != nil {
			return err
		}
		kind := header(b, sequence)
		here := at
		if kind == 0 || !step(1) {
			break
		}
		switch kind {
		case typeDescriptor:
			suspect = suspect || !l.blockSumOK(b)
			n := uint32(0)
			l.tags(b, func(tag) error { n++; return nil })
			if s.compat&compatChecksum != 0 && !failed {
				var err error
				if sum, err = l.sum(crc32be(sum, b), here, n); err != nil {
					return err
				}
			}
			if !step(n) {
				return l.finish(sequence, failed, end)
			}
			continue
		case typeRevoke:
			suspect = suspect || !l.blockSumOK(b)
			continue
		case typeCommit:
			now := be.Uint64(b[0x30:])
			if suspect {
				if now >= lastTime {
					return damaged("t_checksum", sequence, "a committed transaction of the journal has a wrong checksum")
				}
				return l.finish(sequence, failed, end)
			}
			if ok := l.commitOK(b, sum); !ok {
				if now < lastTime {
					return l.finish(sequence, failed, end) // of the log's last round
				}
				if s.incompat&incompatAsyncCommit == 0 {
					return l.finish(sequence, failed, end)
				}
				if !failed {
					failed, end = true, sequence
				}
			} else if failed {
				return damaged("h_chksum", end, "a transaction of the journal has a wrong checksum, and later ones are whole")
			}
			lastTime, sum = now, ^uint32(0)
			sequence++
			continue
		}
		break
	}
	return l.finish(sequence, failed, end)
}

func (l *Log) finish(sequence uint32, failed bool, end uint32) error {
	l.end = sequence
	if failed {
		l.end = end
	}
	l.Transactions = int(l.end - l.s.sequence)
	return nil
}

// sum goes on with a transaction's checksum over the n blocks that follow a
// descriptor.
func (l *Log) sum(sum, at, n uint32) (uint32, error) {
	b := make([]byte, l.s.blockSize)
	for range n {
		at = l.s.wrap(at + 1)
		if err := l.read(b, at); err != nil {
			return 0, err
		}
		sum = crc32be(sum, b)
	}
	return sum, nil
}

// blockSumOK checks a descriptor's or revoke block's checksum.
func (l *Log) blockSumOK(b []byte) bool {
	if !l.s.csum23() {
		return true
	}
	tail := len(b) - 4
	return crc32c(crc32c(l.s.seed, b[:tail]), make([]byte, 4)) == be.Uint32(b[tail:])
}

// commitOK checks a commit block, and with compatChecksum the transaction's sum.
func (l *Log) commitOK(b []byte, sum uint32) bool {
	found := be.Uint32(b[0x10:])
	if l.s.csum23() {
		c := crc32c(l.s.seed, b[:0x10])
		c = crc32c(c, make([]byte, 4))
		return crc32c(c, b[0x14:]) == found
	}
	if l.s.compat&compatChecksum != 0 {
		none := b[0xC] == 0 && b[0xD] == 0 && found == 0
		return none || b[0xC] == checksumCRC32 && b[0xD] == 4 && found == sum
	}
	return true
}

// each calls fn for the blocks of the journal's own in the transactions that
// count: with its place and sequence.
func (l *Log) each(fn func(at, sequence uint32, b []byte) error) error {
	b := make([]byte, l.s.blockSize)
	at, sequence := l.s.start, l.s.sequence
	for sequence != l.end {
		if err := l.read(b, at); err != nil {
			return err
		}
		kind := header(b, sequence)
		if kind == 0 {
			return damaged("h_sequence", sequence, "the journal changed while it was read")
		}
		if err := fn(at, sequence, b); err != nil {
			return err
		}
		at = l.s.wrap(at + 1)
		switch kind {
		case typeCommit:
			sequence++
		case typeDescriptor:
			l.tags(b, func(tag) error { at = l.s.wrap(at + 1); return nil })
		}
	}
	return nil
}

// tag says where a block of a transaction belongs.
type tag struct {
	block    uint64
	checksum uint32
	flags    uint32
}

// tags calls fn for each tag of a descriptor.
func (l *Log) tags(b []byte, fn func(tag) error) error {
	size := l.s.tagSize()
	for at := headerSize; at+size <= l.s.usable(); {
		p := b[at : at+size]
		t := tag{block: uint64(be.Uint32(p))}
		if l.s.incompat&incompatCsumV3 != 0 {
			t.flags, t.checksum = be.Uint32(p[4:]), be.Uint32(p[12:])
		} else {
			t.flags, t.checksum = uint32(be.Uint16(p[6:])), uint32(be.Uint16(p[4:]))
		}
		if l.s.incompat&incompat64Bit != 0 {
			t.block |= uint64(be.Uint32(p[8:])) << 32
		}
		if err := fn(t); err != nil {
			return err
		}
		at += size
		if t.flags&tagSameUUID == 0 {
			at += 16
		}
		if t.flags&tagLast != 0 {
			break
		}
	}
	return nil
}
