package btrfs

import "errors"

var errLZO = errors.New("the LZO stream is damaged")

// unLZO decodes what Btrfs makes by LZO (fs/btrfs/lzo.c of Linux): the length of
// all in 4 bytes, then for each sector of the content its length in 4 bytes, which
// never cross a sector of the extent, and a stream of LZO1X. An inline extent has
// one.
func unLZO(out, b []byte, sector int, inline bool) error {
	if len(b) < 4 {
		return errLZO
	}
	total := int(le.Uint32(b))
	if total > len(b) || total < 4 {
		return errLZO
	}
	for at := 4; at < total && len(out) > 0; {
		if left := sector - at%sector; !inline && left < 4 {
			at += left
		}
		if at+4 > total {
			return errLZO
		}
		n := int(le.Uint32(b[at:]))
		at += 4
		if n > total-at {
			return errLZO
		}
		piece := out[:min(sector, len(out))]
		if _, err := lzo1x(piece, b[at:at+n]); err != nil {
			return err
		}
		at, out = at+n, out[len(piece):]
	}
	return nil
}

// lzo1x decodes one stream into out and says how many bytes it had, as
// Documentation/staging/lzo.rst of Linux describes the format (version 0).
func lzo1x(out, in []byte) (int, error) {
	o, i := 0, 0
	next := func() int {
		if i >= len(in) {
			i = len(in) + 1 // noticed below
			return 0
		}
		i++
		return int(in[i-1])
	}
	// long reads a length whose first bits are 0.
	long := func(most int) int {
		n := most
		for {
			b := next()
			if b != 0 || i > len(in) {
				return n + b
			}
			n += 255
		}
	}
	literals := func(n int) bool {
		if i > len(in) || n > len(in)-i || n > len(out)-o {
			return false
		}
		copy(out[o:], in[i:i+n])
		o, i = o+n, i+n
		return true
	}
	match := func(distance, n int) bool {
		if i > len(in) || distance > o || n > len(out)-o {
			return false
		}
		for range n { // source and place may overlap
			out[o] = out[o-distance]
			o++
		}
		return true
	}
	state := 0 // literals that the last instruction had, 4 for more
	if len(in) > 0 && in[0] > 17 {
		n := next() - 17
		if !literals(n) {
			return o, errLZO
		}
		state = min(n, 4)
	}
	for {
		t := next()
		if i > len(in) {
			return o, errLZO
		}
		var distance, n, trail int
		switch {
		case t >= 64:
			n = t>>5 + 1
			distance = next()<<3 + t>>2&7 + 1
			trail = t & 3
		case t >= 32:
			if n = t & 31; n == 0 {
				n = long(31)
			}
			n += 2
			d := next()
			d |= next() << 8
			distance, trail = d>>2+1, d&3
		case t >= 16:
			if n = t & 7; n == 0 {
				n = long(7)
			}
			n += 2
			d := next()
			d |= next() << 8
			distance, trail = 16384+(t&8)<<11+d>>2, d&3
			if distance == 16384 { // the end
				if i > len(in) {
					return o, errLZO
				}
				return o, nil
			}
		case state == 0:
			if n = t; n == 0 {
				n = long(15)
			}
			if !literals(n + 3) {
				return o, errLZO
			}
			state = 4
			continue
		case state == 4:
			n = 3
			distance, trail = next()<<2+t>>2+2049, t&3
		default:
			n = 2
			distance, trail = next()<<2+t>>2+1, t&3
		}
		if !match(distance, n) || !literals(trail) {
			return o, errLZO
		}
		state = trail
	}
}
