package pdu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Castagnoli is the polynomial of the digests (RFC 7143 section 13.1); Go
// computes it with the processor's instruction where there is one.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Digest is CRC32C as it stands on the wire, least significant byte first.
func Digest(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoli, p) }

// PutDigest writes a digest.
func PutDigest(b []byte, crc uint32) { binary.LittleEndian.PutUint32(b, crc) }

// Errors of a Reader. After ErrDataDigest the Reader stands at the next PDU; after
// any other it can't be used any more.
var (
	ErrHeaderDigest = errors.New("header digest is wrong")
	ErrDataDigest   = errors.New("data digest is wrong")
	ErrTooLong      = errors.New("data segment is longer than negotiated")
)

// Reader reads PDUs from a byte stream. It is used by one goroutine.
type Reader struct {
	in           ahead
	HeaderDigest bool
	DataDigest   bool
	MaxData      int // longest data segment accepted, in bytes

	ahs   [255*4 + 4]byte
	nahs  int
	left  int // bytes of the data segment not yet read
	total int // its length
	crc   uint32
	tail  [8]byte
	waste [512]byte
}

// NewReader reads from r through a buffer of size bytes. What isn't buffered of a
// long data segment is read straight to where it belongs, and with it the next
// header where r is a syscall.Conn, whose Read is then passed by.
func NewReader(r io.Reader, size, maxData int) *Reader {
	return &Reader{in: newAhead(r, size), MaxData: maxData}
}

// Grow makes the buffer larger, unless there is something in it: a peer that has
// sent what it may not send yet keeps the one it has.
func (r *Reader) Grow(size int) {
	if r.in.buffered() == 0 {
		r.in = newAhead(r.in.src, size)
	}
}

// Buffered is how many bytes have arrived that nobody has asked for.
func (r *Reader) Buffered() int { return r.in.buffered() }

// Peek reports whether n more bytes are buffered, after reading on until they are or
// the stream gives none. n is at most HeaderLen.
func (r *Reader) Peek(n int) bool {
	return r.in.peek(n) == nil // what ends the stream, Next returns
}

// Next reads the header of the next PDU, after passing over what is left of the
// last one's data. io.EOF means that the stream ended between PDUs.
func (r *Reader) Next(h *Header) error {
	if err := r.Skip(); err != nil && !errors.Is(err, ErrDataDigest) {
		return err
	}
	if err := r.in.read(h[:]); err != nil {
		return err
	}
	r.nahs = h.AHSLen()
	n := r.nahs
	if r.HeaderDigest {
		n += 4
	}
	if n > 0 {
		if err := r.in.read(r.ahs[:n]); err != nil {
			return midPDU(err)
		}
	}
	if r.HeaderDigest {
		crc := Digest(Digest(0, h[:]), r.ahs[:r.nahs])
		if crc != binary.LittleEndian.Uint32(r.ahs[r.nahs:]) {
			return fmt.Errorf("%w: %s", ErrHeaderDigest, h)
		}
	}
	if h.DataLen() > r.MaxData {
		return fmt.Errorf("%w: %d bytes, at most %d: %s", ErrTooLong, h.DataLen(), r.MaxData, h)
	}
	r.total, r.left, r.crc = h.DataLen(), h.DataLen(), 0
	r.in.long = r.total >= longData
	return nil
}

// AHS is the additional header segments of the current PDU, until the next Next.
func (r *Reader) AHS() []byte { return r.ahs[:r.nahs] }

// Read reads the next len(p) bytes of the data segment, no more than are left of
// it; with the last of them the padding and the digest, which it checks.
func (r *Reader) Read(p []byte) error {
	if len(p) > r.left {
		return fmt.Errorf("%w: %d bytes asked, %d left", ErrTooLong, len(p), r.left)
	}
	if len(p) == 0 {
		return nil
	}
	if err := r.in.read(p); err != nil {
		return midPDU(err)
	}
	if r.DataDigest {
		r.crc = Digest(r.crc, p)
	}
	if r.left -= len(p); r.left > 0 {
		return nil
	}
	pad := -r.total & 3
	n := pad
	if r.DataDigest {
		n += 4
	}
	if n == 0 {
		return nil
	}
	if err := r.in.read(r.tail[:n]); err != nil {
		return midPDU(err)
	}
	if r.DataDigest && Digest(r.crc, r.tail[:pad]) != binary.LittleEndian.Uint32(r.tail[pad:]) {
		return ErrDataDigest
	}
	return nil
}

// Skip passes over what is left of the data segment, checking its digest.
func (r *Reader) Skip() error {
	for r.left > 0 {
		if err := r.Read(r.waste[:min(len(r.waste), r.left)]); err != nil {
			return err
		}
	}
	return nil
}

func midPDU(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
