package embedded

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// stoppedFS holds up the first rename until it is told to go on, and counts.
type stoppedFS struct {
	disk.FS
	begun, goOn chan struct{}
	renames     int // under the store's write lock
}

func (f *stoppedFS) Rename(from, to string) error {
	if f.renames++; f.renames == 1 {
		close(f.begun)
		<-f.goOn
	}
	return f.FS.Rename(from, to)
}

// Changes that are asked for while the catalogue is being written are written
// together, and one that fails takes nothing of the others with it.
func TestStoreTogether(t *testing.T) {
	fs := &stoppedFS{FS: disk.OS(), begun: make(chan struct{}), goOn: make(chan struct{})}
	s := &store{fs: fs, path: filepath.Join(t.TempDir(), "catalogue.json")}
	s.cur.Store(&catalog{Array: lun.NewIdentity(), Pools: map[string]lun.Identity{}})
	add := func(name string, err error) error {
		return s.update(func(c *catalog) error {
			c.Trash = append(c.Trash, fileRef{Pool: "p", Path: name})
			return err
		})
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := add("first", nil); err != nil {
			t.Error(err)
		}
	})
	<-fs.begun
	if n := len(s.read().Trash); n != 0 {
		t.Errorf("%d changes are there before they are stable", n)
	}
	bad := errors.New("bad")
	const n = 50
	for i := range n {
		wg.Go(func() {
			var want error
			if i%10 == 3 {
				want = bad
			}
			if err := add(fmt.Sprint(i), want); !errors.Is(err, want) {
				t.Errorf("change %d: %v", i, err)
			}
		})
	}
	for queued := 0; queued < n; runtime.Gosched() {
		s.mu.Lock()
		queued = len(s.queue)
		s.mu.Unlock()
	}
	close(fs.goOn)
	wg.Wait()
	if fs.renames != 2 {
		t.Errorf("%d writes of the catalogue, want 2", fs.renames)
	}
	again := &store{fs: fs, path: s.path}
	if _, err := again.load(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*catalog{s.read(), again.read()} {
		if len(c.Trash) != 1+n-n/10 || slices.Contains(c.Trash, fileRef{Pool: "p", Path: "13"}) || c.Seq != 2 {
			t.Errorf("sequence %d: %d changes: %v", c.Seq, len(c.Trash), c.Trash)
		}
	}
}
