package blockmap

// BitOrder is which bit of a byte comes first in a sector bitmap.
type BitOrder bool

const (
	MSBFirst BitOrder = true
	LSBFirst BitOrder = false
)

func (o BitOrder) bit(b byte, i int) bool {
	if o == MSBFirst {
		return b&(0x80>>i) != 0
	}
	return b&(1<<i) != 0
}

// BitRun returns the bit at position from of a bitmap and how many bits from
// there on are equal to it, at most limit. from must lie within the bitmap.
func BitRun(bitmap []byte, o BitOrder, from, limit int) (bit bool, n int) {
	bit = o.bit(bitmap[from/8], from%8)
	whole := byte(0)
	if bit {
		whole = 0xff
	}
	limit = min(limit, len(bitmap)*8-from)
	for n < limit {
		at := from + n
		if at%8 == 0 && bitmap[at/8] == whole {
			n += 8
			continue
		}
		if o.bit(bitmap[at/8], at%8) != bit {
			break
		}
		n++
	}
	return bit, min(n, limit)
}
