package blockmap

import (
	"testing"

	"pgregory.net/rapid"
)

// TestBitRun compares with a look at every bit.
func TestBitRun(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0xff, 0x0f, 0xf0, 0x81, 1}), 1, 12).Draw(t, "bitmap")
		o := BitOrder(rapid.Bool().Draw(t, "order"))
		from := rapid.IntRange(0, len(b)*8-1).Draw(t, "from")
		limit := rapid.IntRange(1, 200).Draw(t, "limit")
		bit := func(i int) bool {
			if o == MSBFirst {
				return b[i/8]>>(7-i%8)&1 == 1
			}
			return b[i/8]>>(i%8)&1 == 1
		}
		want := 0
		for want < limit && from+want < len(b)*8 && bit(from+want) == bit(from) {
			want++
		}
		if got, n := BitRun(b, o, from, limit); got != bit(from) || n != want {
			t.Fatalf("%v, %d; want %v, %d", got, n, bit(from), want)
		}
	})
}

// TestClaims compares with a look at every unit.
func TestClaims(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 9).Draw(t, "size")
		total := rapid.Int64Range(size, 60).Draw(t, "total")
		c := NewClaims(total, size)
		used := make(map[int64]bool)
		for _, start := range rapid.SliceOfN(rapid.Int64Range(0, total-size), 1, 8).Draw(t, "starts") {
			free := true
			for u := start; u < start+size; u++ {
				free = free && !used[u]
			}
			if got := c.Claim(start); got != free {
				t.Fatalf("block at %d: free %v, want %v", start, got, free)
			}
			if !free {
				return // what comes after an overlap is not asked
			}
			for u := start; u < start+size; u++ {
				used[u] = true
			}
		}
	})
	for _, c := range [][2]int64{{1, 0}, {1, 1 << 16}, {1 << 62, 1}, {-1, 1}} {
		if NewClaims(c[0], c[1]) != nil {
			t.Errorf("%d units in blocks of %d are checked", c[0], c[1])
		}
	}
}
