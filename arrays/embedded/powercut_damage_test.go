package embedded

import (
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
)

// A map is lost, and then power, while the array starts without it: what was
// taken as changed instead has to be so after the next start too.
func TestPowerCutsAfterLossOfMap(t *testing.T) {
	seed, given := pcEnv(t, "SEED")
	if !given {
		seed = uint64(time.Now().UnixNano())
	}
	traces := uint64(4)
	if testing.Short() || raceEnabled {
		traces = 1
	}
	cuts := 0
	for end := seed + traces; seed < end; seed++ {
		tr := &pcTrace{ctx: t.Context(), rng: rand.New(rand.NewPCG(seed, 0)), m: newPCModel(), steps: 50, more: []string{"split", "write"}}
		tr.useFS(disktest.New())
		if err := tr.run(); err != nil {
			t.Fatalf("CLEAVE_POWERCUT_SEED=%d: %v", seed, err)
		}
		e := tr.m.before()
		e.after()
		if err := pcCheck(tr.fs.Cut(seed), e, seed, 0); err != nil {
			t.Fatalf("CLEAVE_POWERCUT_SEED=%d: after a clean end: %v\nlately:\n%s", seed, err, strings.TrimSpace(tr.lately()))
		}
		for _, lost := range tr.fs.Files() {
			// Without the log of an array that ended well nothing is marked, rightly.
			if ext := path.Ext(lost); ext != ".dirty" && ext != ".split" && ext != ".missed" && ext != ".todo" {
				continue
			}
			for nested := int64(1); nested < 30; nested += 1 + int64(seed%3) {
				fs := tr.fs.Cut(seed)
				if err := fs.Remove(lost); err != nil {
					break // it had not to be there
				}
				e := tr.m.before()
				e.after()
				e.damaged = true
				if err := pcCheck(fs, e, seed, nested); err != nil {
					t.Fatalf("CLEAVE_POWERCUT_SEED=%d: without %s: %v\nlately:\n%s", seed, lost, err, strings.TrimSpace(tr.lately()))
				}
				cuts++
			}
		}
	}
	t.Logf("%d cuts after the loss of a map", cuts)
}
