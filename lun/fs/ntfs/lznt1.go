package ntfs

import "errors"

// chunk is what one header is for, in bytes of content.
const chunk = 4096

var (
	errChunk = errors.New("a chunk is outside of its unit")
	errBack  = errors.New("a reference leads before the beginning of its chunk")
	errLong  = errors.New("a chunk has more than 4096 bytes")
)

// decompress fills out from chunks of LZNT1 ([MS-XCA] 2.5); what they don't reach is zero.
func decompress(out, in []byte) error {
	for len(out) > 0 {
		if len(in) < 2 || le.Uint16(in) == 0 {
			break
		}
		header := le.Uint16(in)
		n := int(header&0xFFF) + 1
		if n > len(in)-2 {
			return errChunk
		}
		data, dst := in[2:2+n], out[:min(chunk, len(out))]
		if header&0x8000 == 0 {
			clear(dst[copy(dst, data):])
		} else if err := decompressChunk(dst, data); err != nil {
			return err
		}
		in, out = in[2+n:], out[len(dst):]
	}
	clear(out)
	return nil
}

// decompressChunk: each byte of flags is for eight tokens, literal or a reference
// to what is before, whose 16 bits are parted by how much that can be.
func decompressChunk(out, in []byte) error {
	at := 0
	for len(in) > 0 {
		flags := in[0]
		in = in[1:]
		for bit := 0; bit < 8 && len(in) > 0; bit++ {
			if flags>>bit&1 == 0 {
				if at == len(out) {
					return errLong
				}
				out[at] = in[0]
				at, in = at+1, in[1:]
				continue
			}
			if len(in) < 2 {
				return errChunk
			}
			token := int(le.Uint16(in))
			in = in[2:]
			shift := 12
			for i := at - 1; i >= 0x10; i >>= 1 {
				shift--
			}
			back, n := token>>shift+1, token&(1<<shift-1)+3
			if back > at {
				return errBack
			}
			if n > len(out)-at {
				return errLong
			}
			for range n {
				out[at] = out[at-back]
				at++
			}
		}
	}
	clear(out[at:])
	return nil
}
