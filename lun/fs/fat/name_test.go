package fat

import (
	"testing"
	"unicode/utf16"
)

// long makes the parts of a long name, in the order of the disk, for a short entry.
func long(units []uint16, short []byte) (parts [][]byte) {
	sum := byte(0)
	for _, c := range short[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	if len(units)%13 != 0 {
		for units = append(units, 0); len(units)%13 != 0; {
			units = append(units, 0xFFFF)
		}
	}
	n := len(units) / 13
	for i := n; i > 0; i-- {
		b := make([]byte, entrySize)
		if b[0] = byte(i); i == n {
			b[0] |= 0x40
		}
		b[11], b[13] = attrLong, sum
		for k, u := range units[(i-1)*13 : i*13] {
			at := 1 + 2*k
			if k >= 5 {
				at = 14 + 2*(k-5)
			}
			if k >= 11 {
				at = 28 + 2*(k-11)
			}
			le.PutUint16(b[at:], u)
		}
		parts = append(parts, b)
	}
	return parts
}

// TestLongName: characters of two units are one, across parts too; lone
// surrogates stay what they are; a part that is missing, or of another entry,
// leaves the short name.
func TestLongName(t *testing.T) {
	short := []byte("LONGNA~1TXT\x20\x00                    ")
	for name, units := range map[string][]uint16{
		"😀.text":                   utf16.Encode([]rune("😀.text")),
		"twelve chars😀":            utf16.Encode([]rune("twelve chars😀")),
		"a\xed\xa0\x80b":           {'a', 0xD800, 'b'},
		"\xed\xb0\x80\xed\xa0\x80": {0xDC00, 0xD800},
	} {
		var l longName
		for _, p := range long(units, short) {
			l.add(p)
		}
		if got := l.take(short); got != name {
			t.Errorf("%q, want %q", got, name)
		}
		if got := l.take(short); got != "" {
			t.Errorf("%q is given a second time", got)
		}
	}
	parts := long(utf16.Encode([]rune("a name that takes three of the parts")), short)
	for what, order := range map[string][]int{"first missing": {1, 2}, "last missing": {0, 1}, "one twice": {0, 0, 1, 2}, "wrong order": {0, 2, 1}} {
		var l longName
		for _, i := range order {
			l.add(parts[i])
		}
		if got := l.take(short); got != "" && what != "one twice" {
			t.Errorf("%s: %q", what, got)
		}
	}
	var l longName
	for _, p := range parts {
		l.add(p)
	}
	if got := l.take([]byte("OTHER      ")); got != "" {
		t.Errorf("another's: %q", got)
	}
}

func TestShortName(t *testing.T) {
	for want, raw := range map[string]string{
		"README":     "README     \x20\x00",
		"readme.TXT": "README  TXT\x20\x08",
		"README.txt": "README  TXT\x20\x10",
		"É A.B":      "\x90 A     B  \x20\x00",
		"σX":         "\x05X         \x20\x00",
	} {
		if got := shortName([]byte(raw)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
