package embedded

import (
	"fmt"
	"sync/atomic"

	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
	"github.com/cleave-san/cleave/lun"
)

// restart ends the array and starts it again.
func (t *pcTrace) restart() error {
	if err := t.close(); err != nil {
		return err
	}
	return t.open()
}

// powerCut has the trace itself lose power and go on with what is left. What the
// restart does, and what it leaves to be done later, is cut again like all else.
func (t *pcTrace) powerCut() error {
	e := t.m.before()
	fs := t.fs.Cut(t.rng.Uint64())
	e.after()
	t.over.Store(true)
	_ = t.close() // of what is no more
	t.useFS(fs)
	if err := t.open(); err != nil {
		return err
	}
	for i := range e.vols {
		x := &e.vols[i]
		if x.d.there && !x.d.gone {
			if err := t.adopt(e, x, t.devs[x.d]); err != nil {
				return err
			}
		}
	}
	for i := range e.splits {
		for j, k := range e.splits[i].s.members {
			if !k.there || k.gone {
				continue
			}
			h, err := t.a.OpenSnapshot(k.snap, "trace")
			if err != nil {
				return err
			}
			err = t.adopt(e, &e.splits[i].members[j], h)
			h.Close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// adopt has the model forget the writes to a device that a power cut took away.
func (t *pcTrace) adopt(e *pcExpect, x *pcExpectDevice, h lun.Device) error {
	b, err := readAll(h)
	if err != nil {
		return err
	}
	if err := e.checkContent(x, b); err != nil {
		return fmt.Errorf("after the cut: %w", err)
	}
	seen, err := e.m.observe(b, x.d.id)
	if err != nil {
		return err
	}
	c := pcContent{floor: x.d.floor, hist: make([][]uint32, len(seen))}
	e.m.set(func() {
		for i, k := range seen {
			hist := x.d.hist[i]
			last, _ := e.m.resolve(hist, k, c.floor[i], e.ceiling)
			for hist[len(hist)-1] != last {
				hist = hist[:len(hist)-1]
			}
			c.hist[i] = hist[:len(hist):len(hist)] // who looks at what was before keeps it
		}
		x.d.become(c)
	})
	return nil
}

// useFS has the trace run on fs, and be watched there.
func (t *pcTrace) useFS(fs *disktest.FS) {
	over := new(atomic.Bool)
	t.fs, t.over = fs, over
	if t.watch != nil {
		fs.OnSync(func(p disktest.Point) {
			if !over.Load() && !t.blind.Load() {
				t.watch(fs, p)
			}
		})
	}
}
