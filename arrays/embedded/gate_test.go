package embedded

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// While epochs follow each other on two sets at one instant again and again: no
// operation is in an epoch that is over, and one that begins when another has
// ended is in no earlier epoch than that.
func TestGate(t *testing.T) {
	sets := [2]*set{{}, {}}
	var numbers sync.Map // of epochs
	var over sync.Map    // epochs that were idle
	for _, s := range sets {
		s.start(epoch0{})
		numbers.Store(s.cur, 0)
	}
	number := func(e *epoch) int {
		n, _ := numbers.Load(e)
		return n.(int)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			last := 0
			for i := 0; !stop.Load(); i++ {
				e := sets[i%2].enter()
				n := number(e)
				if n < last {
					t.Errorf("in epoch %d after one of epoch %d", n, last)
				}
				last = n
				if _, bad := over.Load(e); bad {
					t.Errorf("in epoch %d, which is over", n)
				}
				e.leave()
				if i%64 == 0 { // who ends an epoch waits for those who lost the processor in it
					runtime.Gosched()
				}
			}
		})
	}
	for n := 1; n <= 50000 && !t.Failed(); n++ {
		next := [2]*epoch{newEpoch(epoch0{}), newEpoch(epoch0{})}
		for _, e := range next {
			numbers.Store(e, n)
		}
		for _, s := range sets {
			s.gate.shut()
		}
		var old [2]*epoch
		for i, s := range sets {
			old[i] = s.succeed(next[i])
		}
		for _, s := range sets {
			s.gate.reopen(s.cur)
		}
		for _, e := range old {
			e.leave()
			<-e.idle
			over.Store(e, true)
		}
	}
	stop.Store(true)
	wg.Wait()
}
