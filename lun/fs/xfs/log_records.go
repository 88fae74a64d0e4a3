package xfs

import (
	"fmt"
	"hash/crc32"
)

const (
	// A record's header is a block, and for each further 32 KiB of a record of
	// version 2 there is another one with cycles: struct xlog_rec_header,
	// struct xlog_rec_ext_header.
	recordHeader    = 328 // what of the header its checksum covers, by 64-bit kernels
	recordHeader32  = 324 // and by 32-bit ones
	recordExtension = 260
	maxRecord       = 256 << 10 // XLOG_MAX_RECORD_BSIZE
	formatLittle    = 1         // XLOG_FMT_LINUX_LE: h_fmt
)

// lsn is the place of a record: its cycle, and its block in the log.
type lsn uint64

func (l lsn) cycle() uint32 { return uint32(l >> 32) }
func (l lsn) block() int64  { return int64(uint32(l)) }

// logRecord is one of the log.
type logRecord struct {
	at     int64 // first block
	blocks int64 // all of them, the headers' too
	lsn    lsn
	tail   lsn // what of the log was needed when it was written
	ops    uint32
	data   []byte // with the cycles taken out of it; nil if it was not read
}

// torn is a record that was not written to its end.
type torn struct{ error }

func (l *logReader) blocks(at, n int64) ([]byte, error) {
	b := make([]byte, n*logBlock)
	first := min(n, l.n-at)
	for _, part := range []struct {
		b  []byte
		at int64
	}{{b[:first*logBlock], at}, {b[first*logBlock:], 0}} {
		if len(part.b) == 0 {
			continue
		}
		if _, err := l.f.meta.ReadAt(part.b, l.at+part.at*logBlock); err != nil {
			return nil, fmt.Errorf("xfs log: %w", err)
		}
	}
	return b, nil
}

// header reads what is of the record whose header is block at. It is torn where
// there is no header, or none that makes sense.
func (l *logReader) header(at int64) (r logRecord, headers int64, raw []byte, err error) {
	raw, err = l.block(at)
	if err != nil {
		return r, 0, nil, err
	}
	bad := func(format string, args ...any) (logRecord, int64, []byte, error) {
		return logRecord{}, 0, nil, torn{fmt.Errorf("block %d of the log: "+format, append([]any{at}, args...)...)}
	}
	size, version, n := int64(be.Uint32(raw[320:])), be.Uint32(raw[8:]), int64(be.Uint32(raw[12:]))
	r = logRecord{at: at, lsn: lsn(be.Uint64(raw[16:])), tail: lsn(be.Uint64(raw[24:])), ops: be.Uint32(raw[40:])}
	switch {
	case be.Uint32(raw) != logMagic:
		return bad("no record begins here")
	case version != 1 && version != 2:
		return bad("h_version is %d", version)
	case r.lsn.block() != at || r.lsn.cycle() != be.Uint32(raw[4:]):
		return bad("h_lsn is that of block %d", r.lsn.block())
	case n > maxRecord || size > maxRecord || n < 0:
		return bad("h_len is %d", n)
	}
	headers = 1
	if version == 2 && size > logCycles {
		headers = (size + logCycles - 1) / logCycles
	}
	body := (n + logBlock - 1) / logBlock
	if body > headers*logCycles/logBlock {
		return bad("h_len is %d, h_size %d", n, size)
	}
	r.blocks = headers + body
	if r.blocks > l.n {
		return bad("the record is longer than the log")
	}
	return r, headers, raw, nil
}

// record reads a whole record and verifies it.
func (l *logReader) record(at int64) (logRecord, error) {
	r, headers, raw, err := l.header(at)
	if err != nil {
		return r, err
	}
	all, err := l.blocks(at, r.blocks)
	if err != nil {
		return r, err
	}
	bad := func(format string, args ...any) (logRecord, error) {
		return r, torn{fmt.Errorf("record at block %d of the log: "+format, append([]any{at}, args...)...)}
	}
	if format := be.Uint32(raw[300:]); format != formatLittle {
		return r, fmt.Errorf("xfs: the log was written by a host of another byte order (h_fmt %d): attach it to such a one and mount it", format)
	}
	if uuid := fmt.Sprintf("%x-%x-%x-%x-%x", raw[304:308], raw[308:310], raw[310:312], raw[312:314], raw[314:320]); uuid != l.f.s.uuid {
		return bad("is of another file system (%s)", uuid)
	}
	length := int64(be.Uint32(raw[12:]))
	body := all[headers*logBlock:]
	if sum := le.Uint32(raw[32:]); !l.f.unsummed {
		if l.sum(all, headers, length, recordHeader) != sum && l.sum(all, headers, length, recordHeader32) != sum {
			return bad("its checksum is wrong")
		}
	}
	for i := range int64(len(body)) / logBlock {
		h := all[44:]
		k := i
		if ext := i / (logCycles / logBlock); ext > 0 {
			h, k = all[ext*logBlock+4:], i%(logCycles/logBlock)
		}
		if c := be.Uint32(body[i*logBlock:]); c != r.lsn.cycle() && !(c == r.lsn.cycle()+1 && at+headers+i >= l.n) {
			return bad("block %d of it is of cycle %d", i, c)
		}
		copy(body[i*logBlock:], h[k*4:k*4+4])
	}
	r.data = body[:length]
	return r, nil
}

// sum is a record's checksum: xlog_cksum().
func (l *logReader) sum(all []byte, headers, length int64, header int) uint32 {
	sum := crc32.Update(0, castagnoli, all[:32])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	sum = crc32.Update(sum, castagnoli, all[36:header])
	for i := int64(1); i < headers && i < (length+logCycles-1)/logCycles; i++ {
		sum = crc32.Update(sum, castagnoli, all[i*logBlock:][:recordExtension])
	}
	return crc32.Update(sum, castagnoli, all[headers*logBlock:][:length])
}
