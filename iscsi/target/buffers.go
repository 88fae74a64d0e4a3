package target

import (
	"math/bits"
	"sync"
)

// Buffers come in powers of two from 4 KiB to 8 MiB.
const (
	smallestBuffer = 12
	classes        = 12
)

// buffer is a lent piece of memory. It goes back with free, once, or to the
// garbage collector where somebody may still hold a part of it.
type buffer struct {
	mem   []byte
	class int
}

// pools is memory that is used again, by class. It is shared by all servers of the
// process, as the garbage collector is.
var pools [classes]sync.Pool

// lend returns a buffer of at least n bytes, at most 8 MiB.
func lend(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1))-smallestBuffer, 0)
	if b, ok := pools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{mem: make([]byte, 1<<(class+smallestBuffer)), class: class}
}

func (b *buffer) free() {
	if b != nil {
		pools[b.class].Put(b)
	}
}
