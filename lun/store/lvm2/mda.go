package lvm2

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// The header of a metadata area, 512 bytes:
//
//	off size field
//	  0   4  CRC of the rest
//	  4  16  magic
//	 20   4  version 1
//	 24   8  start of the area on the PV
//	 32   8  size of the area, header included
//	 40  24  raw locations {offset, size, crc, flags}, ended by offset 0
const (
	mdaHeader  = 512
	mdaMagic   = " LVM2 x[5A%r0N*>"
	mdaVersion = 1
	rawIgnored = 1
)

type rawLocation struct {
	off, size  uint64 // off is relative to the area
	crc, flags uint32
}

// read reads the header and the committed text, and takes its bytes from those
// that are left. An area without text is no error.
func (m *MDA) read(pv *PV, left *int) error {
	dev := pv.Dev
	h := make([]byte, mdaHeader)
	if _, err := dev.ReadAt(h, m.Off); err != nil {
		return fmt.Errorf("read the metadata area at byte %d: %w", m.Off, err)
	}
	le := binary.LittleEndian
	fail := func(off int64, field string, v any, why string) error {
		return &lun.FormatError{Format: format, Offset: m.Off + off, Field: field, Value: v, Reason: why}
	}
	if string(h[4:20]) != mdaMagic {
		return fail(4, "metadata area magic", string(h[4:20]), "no metadata area is here, though the PV header says so")
	}
	if want, got := le.Uint32(h), checksum(h[4:]); want != got {
		return fail(0, "metadata area CRC", fmt.Sprintf("%#08x", want), fmt.Sprintf("the header sums to %#08x: it is damaged", got))
	}
	if v := le.Uint32(h[20:]); v != mdaVersion {
		return fail(20, "metadata area version", v, "only version 1 is read")
	}
	if v := le.Uint64(h[24:]); v != uint64(m.Off-pv.Off) {
		return fail(24, "metadata area start", v, fmt.Sprintf("the PV header says %d", m.Off-pv.Off))
	}
	if v := le.Uint64(h[32:]); v != uint64(m.Size) {
		return fail(32, "metadata area size", v, fmt.Sprintf("the PV header says %d", m.Size))
	}
	m.whole = true
	m.slot = rawLocation{le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint32(h[56:]), le.Uint32(h[60:])}
	m.Ignored = m.slot.flags&rawIgnored != 0
	if m.slot.off == 0 || m.Ignored {
		return nil
	}
	switch {
	case m.slot.off < mdaHeader || m.slot.off >= uint64(m.Size):
		return fail(40, "text offset", m.slot.off, fmt.Sprintf("lies outside the area of %d bytes", m.Size))
	case m.slot.size == 0 || m.slot.size > uint64(m.Size-mdaHeader):
		return fail(48, "text size", m.slot.size, fmt.Sprintf("does not fit the area of %d bytes", m.Size))
	case m.slot.size > uint64(*left):
		return fail(48, "text size", m.slot.size, fmt.Sprintf("more than %d bytes of metadata on one physical volume are not read", MaxText))
	}
	*left -= int(m.slot.size)
	text := make([]byte, m.slot.size)
	first := min(uint64(m.Size)-m.slot.off, m.slot.size)
	if _, err := dev.ReadAt(text[:first], m.Off+int64(m.slot.off)); err != nil {
		return fmt.Errorf("read the metadata text at byte %d: %w", m.Off+int64(m.slot.off), err)
	}
	if first < m.slot.size { // the ring goes on behind the header
		if _, err := dev.ReadAt(text[first:], m.Off+mdaHeader); err != nil {
			return fmt.Errorf("read the metadata text at byte %d: %w", m.Off+mdaHeader, err)
		}
	}
	if got := checksum(text); got != m.slot.crc {
		return fail(int64(m.slot.off), "metadata text CRC", fmt.Sprintf("%#08x", m.slot.crc), fmt.Sprintf("the text sums to %#08x: it is damaged", got))
	}
	m.Text = bytes.TrimRight(text, "\x00")
	return nil
}

// Patch is a run of bytes to be put on PV.Dev at Off, over what is there.
type Patch struct {
	PV   *PV
	Off  int64
	Data []byte
}

// replace adds to c what makes text (without NUL) the committed text of the
// area, and has m be the area afterwards. The text follows the one of now in the
// ring, as LVM's own commits do, and the header points to it.
func (m *MDA) replace(pv *PV, text []byte, c *Change) error {
	text = append(bytes.Clone(text), 0)
	if int64(len(text)) > m.Size-mdaHeader {
		return &lun.FormatError{Format: format, Offset: m.Off, Field: "metadata area size", Value: m.Size,
			Reason: fmt.Sprintf("new metadata of %d bytes does not fit", len(text))}
	}
	start := int64(mdaHeader)
	if m.slot.off >= mdaHeader && m.slot.off < uint64(m.Size) && m.slot.size <= uint64(m.Size) {
		start = int64(m.slot.off + m.slot.size)
		if start >= m.Size {
			start += mdaHeader - m.Size
		}
		start = (start + sectorSize - 1) &^ (sectorSize - 1)
		if start >= m.Size {
			start = mdaHeader
		}
		// From the new text's start on, the old one is a ring's length less its
		// own size away.
		gap := int64(m.slot.off) - start
		if gap < 0 {
			gap += m.Size - mdaHeader
		}
		c.Overwrites = c.Overwrites || m.Text != nil && int64(len(text)) > gap
	}
	c.Texts = append(c.Texts, m.pieces(pv, start, text)...)
	c.Headers = append(c.Headers, Patch{pv, m.Off, m.header(m.Off-pv.Off, start, text)})
	m.slot = rawLocation{off: uint64(start), size: uint64(len(text)), crc: checksum(text)}
	m.Text = text[:len(text)-1]
	return nil
}

// pieces are the one or two runs that a text at start of the ring has.
func (m *MDA) pieces(pv *PV, start int64, text []byte) []Patch {
	first := min(m.Size-start, int64(len(text)))
	out := []Patch{{pv, m.Off + start, text[:first]}}
	if first < int64(len(text)) {
		out = append(out, Patch{pv, m.Off + mdaHeader, text[first:]})
	}
	return out
}

// header is the area's header with text at start of the area, which begins at
// byte at of the PV.
func (m *MDA) header(at, start int64, text []byte) []byte {
	h := make([]byte, mdaHeader)
	le := binary.LittleEndian
	copy(h[4:], mdaMagic)
	le.PutUint32(h[20:], mdaVersion)
	le.PutUint64(h[24:], uint64(at))
	le.PutUint64(h[32:], uint64(m.Size))
	le.PutUint64(h[40:], uint64(start))
	le.PutUint64(h[48:], uint64(len(text)))
	le.PutUint32(h[56:], checksum(text))
	le.PutUint32(h, checksum(h[4:]))
	return h
}
