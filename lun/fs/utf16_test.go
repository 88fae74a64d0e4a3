package fs_test

import (
	"slices"
	"testing"

	"github.com/cleave-san/cleave/lun/fs"
)

// TestUTF16: two names never become one, and each comes back.
func TestUTF16(t *testing.T) {
	for name, units := range map[string][]uint16{
		"":                         nil,
		"aé☃":                      {'a', 0xE9, 0x2603},
		"😀":                        {0xD83D, 0xDE00},
		"a\xed\xa0\x80b":           {'a', 0xD800, 'b'},
		"\xed\xb0\x80\xed\xa0\x80": {0xDC00, 0xD800},
		"\uFFFD":                   {0xFFFD},
	} {
		if got := fs.FromUTF16(units); got != name {
			t.Errorf("%x is %q, want %q", units, got, name)
		}
		if got, ok := fs.ToUTF16(name); !ok || !slices.Equal(got, units) {
			t.Errorf("%q is %x, %v", name, got, ok)
		}
	}
	for _, bad := range []string{"\xff", "a\xed", "\xed\xa0", "\xe2\x98"} {
		if got, ok := fs.ToUTF16(bad); ok {
			t.Errorf("%q is %x", bad, got)
		}
	}
}
