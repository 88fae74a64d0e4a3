package fs

import (
	"unicode/utf16"
	"unicode/utf8"
)

// FromUTF16 turns a name of UTF-16 units into UTF-8, a lone surrogate into three
// bytes.
func FromUTF16(units []uint16) string {
	out := make([]byte, 0, len(units)+8)
	for i := 0; i < len(units); i++ {
		u := rune(units[i])
		if !utf16.IsSurrogate(u) {
			out = utf8.AppendRune(out, u)
			continue
		}
		if i+1 < len(units) {
			if r := utf16.DecodeRune(u, rune(units[i+1])); r != utf8.RuneError {
				out = utf8.AppendRune(out, r)
				i++
				continue
			}
		}
		out = append(out, 0xE0|byte(u>>12), 0x80|byte(u>>6)&0x3F, 0x80|byte(u)&0x3F)
	}
	return string(out)
}

// ToUTF16 is the inverse of FromUTF16. ok is false for what FromUTF16 never gives.
func ToUTF16(name string) (units []uint16, ok bool) {
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		if r == utf8.RuneError && n == 1 {
			if len(name)-i < 3 || name[i] != 0xED || name[i+1]&0xE0 != 0xA0 || name[i+2]&0xC0 != 0x80 {
				return nil, false
			}
			r, n = 0xD000|rune(name[i+1]&0x3F)<<6|rune(name[i+2]&0x3F), 3
			units = append(units, uint16(r))
		} else {
			units = utf16.AppendRune(units, r)
		}
		i += n
	}
	return units, true
}
