package embedded

import (
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
)

// gated is a file whose syncs wait for what they are to return.
type gated struct {
	disk.File
	syncs   atomic.Int32
	results chan error
}

func (g *gated) Sync() error {
	g.syncs.Add(1)
	return <-g.results
}

// Who comes while marks are being made stable waits for that if they are its
// own, else for the one flush that serves all who came meanwhile, whatever comes
// of it.
func TestWritesWaitForTwoFlushesAtMost(t *testing.T) {
	for name, fails := range map[string]error{"stable": nil, "failed": errors.New("the disk is gone")} {
		t.Run(name, func(t *testing.T) {
			m, err := createLog(disk.OS(), filepath.Join(testDir(t), "log"), 1<<40, regionSize)
			if err != nil {
				t.Fatal(err)
			}
			file := m.f
			defer file.Close()
			synctest.Test(t, func(t *testing.T) {
				g := &gated{File: file, results: make(chan error)}
				m.f = g
				l := newIntentLog(m, 1<<30, func() {})
				write := func(region int64) *error {
					result := errors.New("it still waits")
					go func() {
						var h held
						if result = l.begin(&h, region*regionSize, 4096); result == nil {
							l.end(&h)
						}
					}()
					synctest.Wait()
					return &result
				}
				first, same := write(0), write(0)
				var others []*error
				for i := range int64(5) {
					others = append(others, write(1000*(i+1)))
				}
				if n := g.syncs.Load(); n != 1 {
					t.Fatalf("%d syncs are under way, want that of the first write", n)
				}
				g.results <- nil
				synctest.Wait()
				if *first != nil || *same != nil {
					t.Errorf("after the flush of their region: %v, %v", *first, *same)
				}
				for i, err := range others {
					if *err == nil {
						t.Errorf("write %d goes on before its mark is stable", i)
					}
				}
				g.results <- fails
				synctest.Wait()
				for i, err := range others {
					if !errors.Is(*err, fails) {
						t.Errorf("write %d after the second flush: %v, want %v", i, *err, fails)
					}
				}
				if n := g.syncs.Load(); n != 2 {
					t.Errorf("%d flushes, want 2", n)
				}
				if n := l.writers.Load(); n != 0 {
					t.Errorf("%d writers are left", n)
				}
			})
		})
	}
}
