package embedded

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// memFile is a file of which only WriteAt works, and fails at one offset.
type memFile struct {
	disk.File
	mu     sync.Mutex
	b      []byte
	bad    int64
	writes int
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes++
	if off <= f.bad && f.bad < off+int64(len(p)) {
		return 0, fs.ErrPermission
	}
	return copy(f.b[off:], p), nil
}

// All files get all bytes, and a failure is told of the file that had it.
func TestWriteTogether(t *testing.T) {
	const off = 12345
	p := make([]byte, 5*piece+7)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for range 50 {
		files := make([]*memFile, 3)
		e := &epoch{}
		for i := range files {
			files[i] = &memFile{b: make([]byte, off+len(p)+1), bad: -1}
			x := &plex{id: lun.NewIdentity(), f: files[i]}
			if i < 2 {
				e.insync = append(e.insync, x)
			} else {
				e.filling = append(e.filling, x)
			}
		}
		files[1].bad = off + 3*piece
		errs := make([]error, 3)
		writeTogether(e, p, off, errs)
		if errs[0] != nil || !errors.Is(errs[1], fs.ErrPermission) || errs[2] != nil {
			t.Fatalf("errors are %v, want one of the second file", errs)
		}
		for i, f := range files {
			if f.writes != 6 {
				t.Fatalf("file %d was written to %d times, want 6", i, f.writes)
			}
			if i != 1 && (!bytes.Equal(f.b[off:off+len(p)], p) || f.b[off-1] != 0 || f.b[off+len(p)] != 0) {
				t.Fatalf("file %d does not hold what was written", i)
			}
		}
	}
}

// Bits that several set and clear at once, flushing as they like, are in the
// file when all have returned, whatever blocks they shared.
func TestMapFlushes(t *testing.T) {
	path := filepath.Join(testDir(t), "map")
	const size = 64 * bitsPerBlock * regionSize
	m, err := createMap(disk.OS(), path, size, regionSize)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	const writers, each = 4, 400
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 3))
			for n := range each {
				i := rng.Int64N(m.n()/writers)*writers + w // nobody else's
				if m.set(i); n%3 == 0 {
					m.clear(i)
				}
				if n%5 != 0 {
					continue
				}
				if err := m.flush(); err != nil {
					t.Error(err)
					return
				}
				if now, _, err := openMap(disk.OS(), path, size); err != nil || now.get(i) != m.get(i) {
					t.Errorf("bit %d is not what it was when it was flushed: %v", i, err)
				} else {
					now.close()
				}
			}
		})
	}
	wg.Wait()
	if err := m.flush(); err != nil {
		t.Fatal(err)
	}
	now, bad, err := openMap(disk.OS(), path, size)
	if err != nil || bad > 0 {
		t.Fatalf("%d bad blocks, %v", bad, err)
	}
	defer now.close()
	for i := range m.n() {
		if m.get(i) != now.get(i) {
			t.Fatalf("bit %d is %v in memory", i, m.get(i))
		}
	}
}
