package initiator

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
)

// facts are what a LUN says about itself.
type facts struct {
	designator string // the strongest of VPD page 0x83
	serial     string // VPD page 0x80

	size            int64 // bytes
	block, physical int   // bytes
	readOnly        bool  // write protected
	cached          bool  // has a volatile cache
	thin, zeroes    bool  // LBPME; LBPRZ: what is not mapped reads as zeroes

	unmap, writeSameUnmap  bool // LBPU, LBPWS
	maxTransfer            uint32
	maxUnmap, maxWriteSame uint64 // blocks; 0: not said
	vendor, product        string
	pages                  []byte
}

// id is the identity in one line, as Options.Identity takes it.
func (f *facts) id() string { return f.designator + " serial=" + f.serial }

// Identify is what Disk.ID says of a LUN with these VPD pages 0x83 and 0x80,
// which are without their headers: for whoever has them from elsewhere.
func Identify(page83, page80 []byte) string {
	f := facts{designator: strongest(page83), serial: printable(page80)}
	return f.id()
}

// asker performs one command, whatever it takes.
type asker func(c *command) (int, error)

// ask performs a command that returns up to n bytes.
func (ask asker) ask(cdb [16]byte, n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := ask(&command{cdb: cdb, in: b})
	return b[:got], err
}

// vpd reads a vital product data page, without its header. A page that isn't
// there is empty.
func (ask asker) vpd(page byte) ([]byte, error) {
	b, err := ask.ask(inquiryCDB(true, page, vpdMax), vpdMax)
	var sense *SenseError
	if errors.As(err, &sense) && sense.Key == IllegalRequest && sense.code() != codeNoUnit {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("VPD page 0x%02x: %w", page, err)
	}
	if len(b) < 4 || b[1] != page {
		return nil, nil
	}
	b, n := b[4:], int(binary.BigEndian.Uint16(b[2:]))
	return b[:min(n, len(b))], nil
}

// vpdMax is as much of a page as is looked at, in bytes.
const vpdMax = 4096

// identify reads who the LUN is and how long.
func (ask asker) identify() (f facts, err error) {
	b, err := ask.ask(inquiryCDB(false, 0, 96), 96)
	if err != nil {
		return f, fmt.Errorf("INQUIRY: %w", err)
	}
	if len(b) < 36 {
		return f, fmt.Errorf("INQUIRY: %w: %d bytes", errLength, len(b))
	}
	switch qualifier, kind := b[0]>>5, b[0]&0x1f; {
	case qualifier != 0:
		return f, ErrNoLUN
	case kind != 0:
		return f, fmt.Errorf("it is no disk, but of peripheral type 0x%02x", kind)
	}
	f.vendor, f.product = printable(b[8:16]), printable(b[16:32])
	page, err := ask.vpd(0x83)
	if err != nil {
		return f, err
	}
	f.designator = strongest(page)
	if page, err = ask.vpd(0x80); err != nil {
		return f, err
	}
	f.serial = printable(page)
	return f, ask.capacity(&f)
}

// capacity is READ CAPACITY, of 16 bytes where the target knows it.
func (ask asker) capacity(f *facts) error {
	b, err := ask.ask(serviceCDB(serviceReadCapacity, 0, 32), 32)
	var sense *SenseError
	var last uint64
	var block uint32
	switch {
	case errors.As(err, &sense) && sense.unsupported():
		if b, err = ask.ask([16]byte{opReadCapacity10}, 8); err != nil || len(b) < 8 {
			return fmt.Errorf("READ CAPACITY(10): %w", errors.Join(err, short(b, 8)))
		}
		last, block = uint64(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])
	case err != nil || len(b) < 12:
		return fmt.Errorf("READ CAPACITY(16): %w", errors.Join(err, short(b, 12)))
	default:
		last, block = binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])
		f.physical = 1
		if len(b) >= 15 {
			f.physical = 1 << min(b[13]&0xf, 12)
			f.thin, f.zeroes = b[14]&0x80 != 0, b[14]&0x40 != 0
		}
	}
	if block < 512 || block > 64<<10 || block&(block-1) != 0 {
		return fmt.Errorf("blocks of %d bytes: only powers of two from 512 to 65536 are known here", block)
	}
	if last >= math.MaxInt64/uint64(block) {
		return fmt.Errorf("last block %d of %d bytes: too many", last, block)
	}
	f.block, f.size = int(block), int64(last+1)*int64(block)
	f.physical = max(f.block, min(f.block*max(f.physical, 1), 1<<20))
	return nil
}

func short(b []byte, want int) error {
	if len(b) >= want {
		return nil
	}
	return fmt.Errorf("%w: %d bytes of %d", errLength, len(b), want)
}

// abilities reads what the LUN can do and allows.
func (ask asker) abilities(f *facts) error {
	var err error
	if f.pages, err = ask.vpd(0x00); err != nil {
		return err
	}
	if bytes.IndexByte(f.pages, 0xb0) >= 0 {
		b, err := ask.vpd(0xb0)
		if err != nil {
			return err
		}
		f.limits(b)
	}
	if bytes.IndexByte(f.pages, 0xb2) >= 0 {
		b, err := ask.vpd(0xb2)
		if err != nil {
			return err
		}
		if len(b) >= 2 {
			f.unmap, f.writeSameUnmap = b[1]&0x80 != 0, b[1]&0x40 != 0
		}
	}
	return ask.mode(f)
}

// limits takes VPD page 0xB0 (SBC-3 section 6.6.3); offsets are those of the
// page less its header.
func (f *facts) limits(b []byte) {
	if len(b) >= 8 {
		f.maxTransfer = binary.BigEndian.Uint32(b[4:])
	}
	if len(b) >= 20 {
		f.maxUnmap = uint64(binary.BigEndian.Uint32(b[16:]))
	}
	if len(b) >= 40 {
		f.maxWriteSame = binary.BigEndian.Uint64(b[32:])
	}
}

// mode reads the write protection and the caching page. A target without it is
// taken to have a cache.
func (ask asker) mode(f *facts) error {
	f.cached = true
	var sense *SenseError
	for _, page := range []byte{0x08, 0x3f} {
		b, err := ask.ask([16]byte{opModeSense6, 0x08, page, 4: 192}, 192)
		if errors.As(err, &sense) && sense.Key == IllegalRequest && sense.code() != codeNoUnit {
			continue
		}
		if err != nil {
			return fmt.Errorf("MODE SENSE(6): %w", err)
		}
		if len(b) < 4 {
			continue
		}
		f.readOnly = b[2]&0x80 != 0
		for p := b[min(len(b), 4+int(b[3])):]; len(p) >= 3; p = p[min(len(p), 2+int(p[1])):] {
			if p[0]&0x7f == 0x08 {
				f.cached = p[2]&0x04 != 0 // WCE
				return nil
			}
		}
		if page == 0x08 {
			continue
		}
	}
	return nil
}

// strongest is the best designator of the LUN itself in VPD page 0x83 (SPC-4
// section 7.8.6), as type and hexadecimal digits. Names from a registry go
// before those that somebody made up.
func strongest(page []byte) string {
	best, rank := "", 0
	for len(page) >= 4 {
		n := int(page[3])
		if 4+n > len(page) {
			break
		}
		kind, d := page[1]&0x0f, page[4:4+n]
		if page[1]>>4&3 == 0 && n > 0 {
			if r, name := judge(kind, d); r > rank {
				best, rank = name+"."+hex.EncodeToString(d), r
			}
		}
		page = page[4+n:]
	}
	return best
}

func judge(kind byte, d []byte) (rank int, name string) {
	switch kind {
	case 3:
		if d[0]>>4 == 3 { // locally assigned
			return 4, "naa"
		}
		return 7, "naa"
	case 2:
		return 6, "eui"
	case 0xa:
		return 5, "uuid"
	case 8:
		return 3, "name"
	case 1:
		return 2, "t10"
	case 0:
		return 1, "vendor"
	}
	return 0, ""
}

// printable is ASCII text of the target without what a terminal might obey.
func printable(b []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return -1
		}
		return r
	}, string(b[:min(len(b), 256)])))
}
