package ntfs

import "testing"

// TestBase: the record of the MFT has number 0, and a sequence number.
func TestBase(t *testing.T) {
	for reference, want := range map[uint64]uint64{0: 16, 1 << 48: 0, 7<<48 | 99: 99} {
		r := &record{number: 16, b: make([]byte, 64)}
		le.PutUint64(r.b[32:], reference)
		if got := r.base(); got != want {
			t.Errorf("a reference of %#x is to %d, want %d", reference, got, want)
		}
	}
}
