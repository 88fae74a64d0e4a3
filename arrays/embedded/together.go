package embedded

import (
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// together is one large write to several files, in pieces that whoever is free
// takes: the caller at once, and a goroutine for each further file when it gets
// a processor, each beginning with another file. Where there is none the caller
// writes all, and waits for nobody who has not begun.
type together struct {
	p      []byte
	off    int64
	files  []io.WriterAt
	next   []atomic.Int64 // by file: the first byte that nobody took
	pieces sync.WaitGroup

	mu   sync.Mutex
	errs []error // by file: the first
}

// piece is how much of a file is taken at once, in bytes: what is left to one
// when the other is done should be little.
const piece = 256 << 10

// writeTogether writes p at off of all files of e, and gives the first error of
// each in errs. p is the caller's again when it returns.
func writeTogether(e *epoch, p []byte, off int64, errs []error) {
	t := &together{p: p, off: off, errs: errs, next: make([]atomic.Int64, len(errs))}
	for _, x := range e.insync {
		t.files = append(t.files, x.f)
	}
	for _, x := range e.filling {
		t.files = append(t.files, x.f)
	}
	t.pieces.Add(len(t.files) * ((len(p) + piece - 1) / piece))
	for i := 1; i < min(len(t.files), runtime.GOMAXPROCS(0)); i++ {
		go t.work(i)
	}
	t.work(0)
	t.pieces.Wait()
}

// work takes pieces until none is left, beginning with file i. One who comes
// after the write touches neither p nor the files nor errs.
func (t *together) work(i int) {
	for range t.files {
		for {
			at := t.next[i].Add(piece) - piece
			if at >= int64(len(t.p)) {
				break
			}
			if _, err := t.files[i].WriteAt(t.p[at:min(at+piece, int64(len(t.p)))], t.off+at); err != nil {
				t.fail(i, err)
			}
			t.pieces.Done()
		}
		i = (i + 1) % len(t.files)
	}
}

func (t *together) fail(i int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.errs[i] == nil {
		t.errs[i] = err
	}
}
