package jbd2

// pass is the second and third time through the log.
type pass struct {
	l       *Log
	limit   uint64            // blocks of the file system
	revoked map[uint64]uint32 // by block: the last transaction that revoked it
}

// revoke collects revoke records: PASS_REVOKE.
func (p *pass) revoke(at, sequence uint32, b []byte) error {
	if be.Uint32(b[4:]) != typeRevoke {
		return nil
	}
	s := p.l.s
	used, size := int64(be.Uint32(b[12:])), 4
	if s.incompat&incompat64Bit != 0 {
		size = 8
	}
	if used < 16 || used > int64(s.usable()) {
		return damaged("r_count", used, "a revoke block of the journal has more records than room")
	}
	for o := 16; o+size <= int(used); o += size {
		block := uint64(be.Uint32(b[o:]))
		if size == 8 {
			block = be.Uint64(b[o:])
		}
		p.revoked[block] = sequence // sequences only grow
		if len(p.revoked) > maxBlocks {
			return damaged("r_count", len(p.revoked), "the journal revokes more blocks than are read here")
		}
	}
	return nil
}

// replay notes where the newest content of each block is: PASS_REPLAY. Every
// block's checksum is verified.
func (p *pass) replay(at, sequence uint32, b []byte) error {
	if be.Uint32(b[4:]) != typeDescriptor {
		return nil
	}
	l := p.l
	data := make([]byte, l.s.blockSize)
	return l.tags(b, func(t tag) error {
		at = l.s.wrap(at + 1)
		if by, ok := p.revoked[t.block]; ok && int32(sequence-by) <= 0 {
			return nil
		}
		if t.block >= p.limit {
			return damaged("t_blocknr", t.block, "the journal holds a block beyond the end of the file system")
		}
		if l.s.csum23() {
			if err := l.read(data, at); err != nil {
				return err
			}
			if !l.tagOK(t, sequence, data) {
				return damaged("t_checksum", t.block, "a block in a committed transaction of the journal has a wrong checksum")
			}
		}
		l.place[t.block] = copied{at, sequence, t.flags&tagEscape != 0}
		if len(l.place) > maxBlocks {
			return damaged("s_maxlen", l.s.maxLen, "the journal brings back more blocks than are read here")
		}
		return nil
	})
}

func (l *Log) tagOK(t tag, sequence uint32, data []byte) bool {
	var seq [4]byte
	be.PutUint32(seq[:], sequence)
	sum := crc32c(crc32c(l.s.seed, seq[:]), data)
	if l.s.incompat&incompatCsumV3 != 0 {
		return sum == t.checksum
	}
	return sum&0xffff == t.checksum
}
