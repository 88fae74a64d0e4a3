package embedded

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
)

// pcEnv reads a number from the environment:
//
//	CLEAVE_POWERCUT_CUTS  cut points; by default 10,000, and fewer with -short or -race
//	CLEAVE_POWERCUT_SEED  the first trace's seed, as a failure prints it; 0 is a new one
//	CLEAVE_POWERCUT_AT    the one sync point of it to cut at
//	CLEAVE_POWERCUT_MORE  steps that come often, their names with commas between
func pcEnv(t *testing.T, name string) (n uint64, given bool) {
	s := os.Getenv("CLEAVE_POWERCUT_" + name)
	if s == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("CLEAVE_POWERCUT_%s: %v", name, err)
	}
	return n, true
}

// Traces of random operations lose power at each of their sync points. What is
// found after the restart is what the package promises.
func TestPowerCuts(t *testing.T) {
	cuts, given := pcEnv(t, "CUTS")
	if !given {
		cuts = 10_000
		switch {
		case raceEnabled: // make test has all of them without the detector
			cuts = 100
		case testing.Short():
			cuts = 1_000
		}
	}
	// Always the same traces, so that a change is judged by what it does.
	// Others are looked for by integration/powercut.
	seed, given := pcEnv(t, "SEED")
	switch {
	case !given:
		seed = 1
	case seed == 0:
		seed = uint64(time.Now().UnixNano())
	}
	at, one := pcEnv(t, "AT")
	done, traces := 0, 0
	begun := time.Now()
	for ; done < int(cuts) && (traces == 0 || !one) && (pcLeft == nil || traces < int(cuts)/100); seed++ {
		n, err := pcRun(t.Context(), seed, int64(at))
		if err != nil {
			t.Fatalf("CLEAVE_POWERCUT_SEED=%d: %v", seed, err)
		}
		done += n
		traces++
	}
	t.Logf("%d cuts of %d traces, the last of seed %d, in %v", done, traces, seed-1, time.Since(begun).Round(time.Millisecond))
}

// pcCut is what is to be checked.
type pcCut struct {
	at   disktest.Point
	fs   *disktest.FS
	e    *pcExpect
	seed uint64
}

// pcLeft says how often a sync was left out, in the check that the tests notice
// it (integration/powercut); else it is nil.
var pcLeft func() int64

// pcNear is for how many sync points after one that was left out to look.
const pcNear = 12

// pcStuck is after what time a trace hangs. It takes seconds.
const pcStuck = 4 * time.Minute

// pcRun performs one trace and checks what is left at each of its sync points,
// or at one of them.
func pcRun(ctx context.Context, seed uint64, at int64) (cuts int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := &pcTrace{ctx: ctx, rng: rand.New(rand.NewPCG(seed, 0)), m: newPCModel(), steps: pcSteps, more: strings.Split(os.Getenv("CLEAVE_POWERCUT_MORE"), ",")}
	if raceEnabled {
		t.steps /= 5
	}
	defer time.AfterFunc(pcStuck, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("CLEAVE_POWERCUT_SEED=%d: not over after %v\nlately:\n%s", seed, pcStuck, t.lately()))
	}).Stop()
	queue := make(chan pcCut)
	var n, points atomic.Int64
	var look struct{ left, until atomic.Int64 }
	t.watch = func(fs *disktest.FS, p disktest.Point) {
		p.N = points.Add(1) // whatever became of the file system since
		if pcLeft != nil {
			if left := pcLeft(); look.left.Swap(left) != left {
				look.until.Store(p.N + pcNear)
			}
			if p.N > look.until.Load() && p.N%8 != 0 { // elsewhere it may be the restart that lacks it
				return
			}
		}
		if at > 0 && p.N != at || ctx.Err() != nil {
			return
		}
		if raceEnabled && at == 0 && p.N%8 != int64(seed%8) {
			return // a trace alone has a thousand and more
		}
		c := pcCut{at: p, e: t.m.before(), seed: seed ^ uint64(p.N)<<40}
		c.fs = fs.Cut(c.seed)
		c.e.after()
		t.note(&t.points, "sync point %d: %s %s", p.N, p.Op, p.Name)
		queue <- c
	}
	t.useFS(disktest.New())
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for c := range queue {
				if ctx.Err() != nil {
					continue
				}
				nested := int64(0)
				if c.seed>>3%8 == 0 || pcLeft != nil {
					nested = 1 + int64(c.seed%23)
				}
				lately := t.lately()
				if err := pcCheck(c.fs, c.e, c.seed, nested); err != nil {
					cancel(fmt.Errorf("CLEAVE_POWERCUT_AT=%d, %s %s: %w\nlately:\n%s", c.at.N, c.at.Op, c.at.Name, err, lately))
					continue
				}
				n.Add(1)
				if nested > 0 {
					n.Add(1)
				}
			}
		})
	}
	if err = t.run(); err != nil && t.a != nil {
		t.a.Close()
	}
	close(queue)
	wg.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err != nil {
		err = fmt.Errorf("%w\nlately:\n%s", err, t.lately())
	}
	return int(n.Load()), err
}
