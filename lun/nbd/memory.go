package nbd

import (
	"math/bits"
	"sync"
)

// budget is a bound on bytes held at once. One goroutine takes, any may give.
type budget struct {
	mu   sync.Mutex
	more sync.Cond
	left int
}

func (b *budget) init(n int) {
	b.left = n
	b.more.L = &b.mu
}

// take waits until n bytes are free; n is at most what the budget began with.
func (b *budget) take(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.left < n {
		b.more.Wait()
	}
	b.left -= n
}

func (b *budget) give(n int) {
	b.mu.Lock()
	b.left += n
	b.mu.Unlock()
	b.more.Signal()
}

// bufferPool keeps buffers of powers of two between 4 KiB and MaxPayload for
// reuse: a fresh 1 MiB per request costs more than the copy.
type bufferPool struct {
	classes [26]sync.Pool
}

func class(n int) int { return max(12, bits.Len(uint(n-1))) }

func (p *bufferPool) get(n int) []byte {
	if n == 0 {
		return nil
	}
	c := class(n)
	if b, ok := p.classes[c].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<c)
}

func (p *bufferPool) put(b []byte) {
	if cap(b) == 0 {
		return
	}
	b = b[:cap(b)]
	p.classes[class(len(b))].Put(&b)
}
