package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// fill copies to a mirror what it lacks, in the background. Writes go to the
// mirror meanwhile, so what is once copied stays equal.
//
// Its todo map holds the regions still to be copied. A region's bit is cleared
// only after the mirror was synced; after a crash the marked regions of the
// intent log are added, and the copying goes on from there.
type fill struct {
	v    *volume
	p    *plex
	todo *mapFile
	// all: the map is still to be made, from where the source has data.
	all bool

	total, copied atomic.Int64 // bytes
	pace          pace         // of copied
	stalled       atomic.Pointer[string]
	ctx           context.Context
	cancel        context.CancelFunc
	done          chan struct{}
}

// checkpointEvery is how many bytes may be copied again after a crash.
const checkpointEvery = 64 << 20

func (v *volume) newFill(p *plex, todo *mapFile, all bool) *fill {
	f := &fill{v: v, p: p, todo: todo, all: all, done: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(v.a.bg)
	f.total.Store(todo.count() * regionSize)
	return f
}

// resumeFill continues after a restart: what was to be done, and the marked
// regions. r is changed to refer to the fill's own map, which is stable.
func (v *volume) resumeFill(p *plex, r *mirrorRecord, log *mapFile) (*fill, error) {
	own := todoName(p.id)
	todo, err := v.unite(own, r.Todo)
	if err != nil {
		return nil, err
	}
	orScaled(todo, log)
	if err := todo.flush(); err != nil {
		return nil, err
	}
	r.Todo = []string{own}
	return v.newFill(p, todo, r.All), nil
}

// unite makes the map file own with the bits of all the others. If it is one of
// them it keeps what it has, so that a crash takes nothing from it.
func (v *volume) unite(own string, others []string) (todo *mapFile, err error) {
	if slices.Contains(others, own) {
		todo, err = v.openOrAll(own, v.size.Load(), regionSize)
	} else {
		todo, err = createMap(v.a.fs, v.a.mapPath(own), v.size.Load(), regionSize)
	}
	if err != nil {
		return nil, err
	}
	if err := v.addMaps(todo, others); err != nil {
		todo.close()
		return nil, err
	}
	return todo, nil
}

// addMaps adds the bits of other map files to m.
func (v *volume) addMaps(m *mapFile, others []string) error {
	for _, name := range others {
		if v.a.mapPath(name) == m.path {
			continue
		}
		if o := v.openMapNamed(name); o != nil {
			m.or(o.bitmap) // has what is not flushed yet
			continue
		}
		o, err := v.openOrAll(name, v.size.Load(), regionSize)
		if err != nil {
			return err
		}
		m.or(o.bitmap)
		o.close()
	}
	return nil
}

// openMapNamed is the map file of that name, if the volume has it open.
func (v *volume) openMapNamed(name string) *mapFile {
	path := v.a.mapPath(name)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range v.epochs {
		if m.path == path {
			return m
		}
	}
	for _, m := range v.missed {
		if m.path == path {
			return m
		}
	}
	return nil
}

// startFill lets a fill run until it is done or cancelled.
func (v *volume) startFill(f *fill) {
	v.mu.Lock()
	v.fills[f.p.id] = f
	v.mu.Unlock()
	if !v.a.start(f.run) {
		f.end()
	}
}

func (f *fill) end() {
	v := f.v
	v.mu.Lock()
	if v.fills[f.p.id] == f {
		delete(v.fills, f.p.id)
	}
	v.mu.Unlock()
	f.cancel()
	f.todo.close()
	close(f.done)
	v.notify()
}

// describe adds to m how far the copying is.
func (f *fill) describe(m *MirrorInfo) {
	if s := f.stalled.Load(); s != nil {
		m.Reason = *s
	}
	m.Copied, m.ToCopy = f.copied.Load(), f.total.Load()
	m.Rate = f.pace.perSecond(time.Now(), m.Copied)
	m.Remaining = timeFor(m.ToCopy-m.Copied, m.Rate)
}

func (f *fill) run() {
	defer f.end()
	v := f.v
	var begun time.Time
	for {
		err := f.work(&begun)
		if err == nil {
			break
		}
		if f.ctx.Err() != nil || f.p.failed() != nil || errors.Is(err, lun.ErrClosed) {
			return
		}
		why := err.Error()
		f.stalled.Store(&why)
		v.a.event(ResyncStalled, v, f.p.id, "%s: copying to mirror %s: %v; it is tried again", v.label, f.p.id, err)
		select {
		case <-time.After(v.a.o.retryAfter):
		case <-f.ctx.Done():
			return
		}
	}
	if n := f.copied.Load(); n >= copyChunk {
		v.a.lastPace.Store(int64(float64(n) / max(time.Since(begun), time.Microsecond).Seconds()))
	}
	v.a.event(ResyncDone, v, f.p.id, "%s: mirror %s in pool %q is in sync: %d bytes were copied in %v", v.label, f.p.id, f.p.pool, f.copied.Load(), time.Since(begun).Round(time.Millisecond))
}

// work copies what is to be copied when there is a place for one more to do so,
// and gives the place up before what remains: the catalogue takes the ends of
// many resyncs with one write. begun is set when it first has a place.
func (f *fill) work(begun *time.Time) error {
	select {
	case f.v.a.copying <- struct{}{}:
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
	if begun.IsZero() {
		*begun = time.Now()
	}
	err := f.transfer()
	<-f.v.a.copying
	if err != nil {
		return err
	}
	return f.finish()
}

func (f *fill) transfer() error {
	if f.all {
		if err := f.mapAll(); err != nil {
			return err
		}
	}
	f.stalled.Store(nil)
	return f.copy()
}

// mapAll finds what a new, empty mirror lacks: all that is data in the source.
// What is written from now on goes to both.
func (f *fill) mapAll() error {
	v := f.v
	err := v.extents(0, v.size.Load(), func(x lun.Extent) error {
		if !x.Hole {
			f.todo.setRange(x.Off, x.Len, regionSize)
		}
		return f.ctx.Err()
	})
	if err != nil {
		return err
	}
	if err := f.todo.flush(); err != nil {
		return err
	}
	f.total.Store(f.todo.count() * regionSize)
	err = v.a.change(func(c *catalog) error {
		if m := c.mirrorOf(v.id, f.p.id); m != nil {
			m.All, m.Todo = false, []string{todoName(f.p.id)}
		}
		return nil
	})
	f.all = err != nil
	return err
}

func (f *fill) copy() error {
	buf := make([]byte, min(copyChunk, regionsFor(f.v.size.Load(), regionSize)*regionSize))
	f.pace.start(time.Now(), f.copied.Load())
	type run struct{ first, n int64 }
	var since []run // copied and not yet synced
	var bytesSince int64
	checkpoint := func() error {
		if len(since) == 0 {
			return nil
		}
		if err := f.p.f.Sync(); err != nil {
			return f.lose(err)
		}
		for _, r := range since {
			for i := r.first; i < r.first+r.n; i++ {
				f.todo.clear(i)
			}
		}
		since, bytesSince = since[:0], 0
		return f.todo.flush()
	}
	for at := int64(0); ; {
		first, n := f.todo.run(at, int64(len(buf))/regionSize)
		if n == 0 {
			return checkpoint()
		}
		off := first * regionSize
		length := min(n*regionSize, f.v.size.Load()-off) // the volume may grow meanwhile
		if err := f.v.a.copies.wait(f.ctx, length); err != nil {
			return err
		}
		if err := f.copyRange(buf[:length], off); err != nil {
			return err
		}
		f.v.a.copied.Add(length)
		f.pace.reach(time.Now(), f.copied.Add(length))
		at, since = first+n, append(since, run{first, n})
		if bytesSince += length; bytesSince >= checkpointEvery {
			if err := checkpoint(); err != nil {
				return err
			}
		}
	}
}

func (f *fill) copyRange(buf []byte, off int64) error {
	var sp span
	f.v.order.lock(&sp, off, int64(len(buf)))
	defer f.v.order.unlock(&sp)
	if _, err := f.v.readAt(buf, off); err != nil {
		return err
	}
	if err := writeSparse(f.p.f, buf, off); err != nil {
		return f.lose(err)
	}
	return nil
}

// lose drops the mirror that is being copied to.
func (f *fill) lose(cause error) error {
	f.v.state.Lock()
	defer f.v.state.Unlock()
	if inEpoch(f.v.cur, f.p) {
		if err := f.v.drop(f.p, cause); err != nil {
			return err
		}
	}
	return cause
}

// join has whoever syncs the volume sync the mirror as well. Nobody syncs
// without it any more when it returns.
func (f *fill) join() {
	v := f.v
	v.state.Lock()
	if !inEpoch(v.cur, f.p) || slices.Contains(v.cur.joining, f.p) {
		v.state.Unlock()
		return
	}
	next := v.cur.parts()
	next.joining = with(next.joining, f.p)
	old := v.flip(next)
	v.state.Unlock()
	<-old.idle
}

// finish makes the mirror one of those in sync: first in the catalogue, then in
// the epoch. A crash between finds it in sync, so that by then all that was
// synced has to be stable on it.
func (f *fill) finish() error {
	v := f.v
	f.join()
	if err := f.p.f.Sync(); err != nil {
		return f.lose(err)
	}
	v.state.Lock()
	defer v.state.Unlock()
	if !inEpoch(v.cur, f.p) {
		return fmt.Errorf("mirror %s was dropped or removed meanwhile", f.p.id)
	}
	err := v.a.change(func(c *catalog) error {
		m := c.mirrorOf(v.id, f.p.id)
		if m == nil {
			return fmt.Errorf("mirror %s is no longer the volume's", f.p.id)
		}
		m.State, m.Todo, m.All, m.Reason, m.FileID = inSync, nil, false, "", fileID(f.p.f)
		c.volume(v.id).noteUnmirrored(v.a.o.Now())
		return nil
	})
	if err != nil {
		return err
	}
	next := v.cur.parts()
	next.insync, next.filling, next.joining = with(next.insync, f.p), without(next.filling, f.p), without(next.joining, f.p)
	v.flip(next)
	v.a.scrap(v.a.mapPath(todoName(f.p.id)))
	return nil
}

func (c *catalog) mirrorOf(volume, mirror lun.Identity) *mirrorRecord {
	if v := c.volume(volume); v != nil {
		return v.mirror(mirror)
	}
	return nil
}

var zeroChunk [copyChunk]byte

// writeSparse writes buf, and makes holes of those of its regions that are
// zero.
func writeSparse(f disk.File, buf []byte, off int64) error {
	for len(buf) > 0 {
		n, zero := 0, bytes.Equal(buf[:min(len(buf), regionSize)], zeroChunk[:min(len(buf), regionSize)])
		for n < len(buf) {
			k := min(len(buf)-n, regionSize)
			if bytes.Equal(buf[n:n+k], zeroChunk[:k]) != zero {
				break
			}
			n += k
		}
		var err error
		if zero {
			err = f.PunchHole(off, int64(n))
		} else {
			_, err = f.WriteAt(buf[:n], off)
		}
		if err != nil {
			return err
		}
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}
