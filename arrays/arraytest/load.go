package arraytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// testOrder splits groups under load and checks that they hold a prefix of what
// was written.
func testOrder(t *testing.T, l *Lab) {
	a := l.array()
	for i := range l.rounds() {
		vs := l.Volumes
		if !a.CanSplitGroup() || i%3 == 2 {
			vs = vs[:1]
		}
		if err := SplitUnderLoad(t.Context(), a, driver.Tag(fmt.Sprintf("order-%d", i)), vs); err != nil {
			t.Fatal(err)
		}
	}
}

// testOrderArmed does the same in two steps: what is written between them is in
// the splits.
func testOrderArmed(t *testing.T, l *Lab) {
	a := l.array()
	for i := range l.rounds() {
		tag := driver.Tag(fmt.Sprintf("armed-%d", i))
		load, err := StartLoad(l.Volumes)
		if err != nil {
			t.Fatal(err)
		}
		err = load.split(t.Context(), a, tag, func(ctx context.Context, ids []driver.VolumeID) ([]driver.Snapshot, error) {
			if err := a.Arm(ctx, tag, ids, time.Minute); err != nil {
				return nil, err
			}
			load.before = load.acknowledged() // what is acknowledged since counts as well
			return a.Commit(ctx, tag)
		})
		if err := errors.Join(err, load.Stop()); err != nil {
			t.Fatal(err)
		}
	}
}

// testControl shows that the check of the write order can fail.
func testControl(t *testing.T, l *Lab) {
	o, _ := l.Driver.(driver.Opener)
	a := arrays.New("sequential", Sequential{Driver: l.Driver, Opener: o}, arrays.Options{})
	const tries = 20
	for i := range tries {
		var torn *TornError
		err := SplitUnderLoad(t.Context(), a, driver.Tag(fmt.Sprintf("torn-%d", i)), l.Volumes)
		if errors.As(err, &torn) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("%d groups were split one volume after the other, and none was caught", tries)
}

func (l *Lab) rounds() int {
	if l.Splits == 0 {
		return 5
	}
	return l.Splits
}

// SplitUnderLoad splits the volumes as one group while streams write to them,
// and returns a TornError if the snapshots hold no prefix of each stream. The
// snapshots are given back.
func SplitUnderLoad(ctx context.Context, a *arrays.Array, tag driver.Tag, vs []Volume) error {
	load, err := StartLoad(vs)
	if err != nil {
		return err
	}
	return errors.Join(load.Split(ctx, a, tag), load.Stop())
}

// streams write all at once, in sizes that are written whole and in parts. They
// fit into MinVolume.
var streams = []Stream{
	{ID: 1, Base: 0, Size: 4096, Slots: 16},
	{ID: 2, Base: 1 << 20, Size: 512, Slots: 8},
	{ID: 3, Base: 2<<20 - 1024, Size: 192 << 10, Slots: 2},
	{ID: 4, Base: 3 << 20, Size: 16 << 10, Slots: 8},
}

// Load is streams being written over volumes, as fast as they go, until Stop. One
// at a time may split what it writes to; while it brings mirrors into sync
// again, or reads, the streams pause.
type Load struct {
	devs []lun.Device
	ids  []driver.VolumeID
	done []atomic.Uint64 // the last write of each stream that was acknowledged

	before []uint64     // what was acknowledged before the split began
	going  sync.RWMutex // is held by each write
	quit   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	err    error
}

// StartLoad wipes the streams' areas of the volumes, begins to write, and returns
// when each stream has gone over all volumes.
func StartLoad(vs []Volume) (*Load, error) {
	l := &Load{quit: make(chan struct{}), done: make([]atomic.Uint64, len(streams))}
	for _, v := range vs {
		l.ids, l.devs = append(l.ids, v.ID), append(l.devs, v.Device)
	}
	for _, s := range streams {
		for _, d := range l.devs {
			if _, err := d.WriteAt(make([]byte, s.Area()), s.Base); err != nil {
				return nil, err
			}
		}
	}
	var warm sync.WaitGroup
	for i, s := range streams {
		warm.Add(1)
		l.wg.Go(func() { l.write(s, &l.done[i], sync.OnceFunc(warm.Done)) })
	}
	warm.Wait()
	return l, nil
}

// write writes a stream until the load is stopped. It calls warm when the
// stream has gone over all volumes, or ends.
func (l *Load) write(s Stream, done *atomic.Uint64, warm func()) {
	defer warm()
	buf := make([]byte, s.Size)
	for k := uint64(1); ; k++ {
		l.going.RLock()
		err := s.Write(l.devs, k, buf)
		l.going.RUnlock()
		if err != nil {
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
			return
		}
		done.Store(k)
		if k == uint64(len(l.devs)) {
			warm()
		}
		select {
		case <-l.quit:
			return
		default:
		}
	}
}

// Stop ends the load and returns what a write failed with.
func (l *Load) Stop() error {
	close(l.quit)
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Writes is how many writes were acknowledged.
func (l *Load) Writes() (n uint64) {
	for _, k := range l.acknowledged() {
		n += k
	}
	return n
}

func (l *Load) acknowledged() []uint64 {
	out := make([]uint64, len(l.done))
	for i := range out {
		out[i] = l.done[i].Load()
	}
	return out
}

// Split prepares and splits all volumes under the load, checks what the
// snapshots hold, and gives them back.
func (l *Load) Split(ctx context.Context, a *arrays.Array, tag driver.Tag) error {
	return l.split(ctx, a, tag, func(ctx context.Context, ids []driver.VolumeID) ([]driver.Snapshot, error) {
		return a.Split(ctx, tag, ids)
	})
}

func (l *Load) split(ctx context.Context, a *arrays.Array, tag driver.Tag, split func(context.Context, []driver.VolumeID) ([]driver.Snapshot, error)) error {
	l.going.Lock()
	err := a.Prepare(ctx, l.ids, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true})
	l.going.Unlock()
	if err == nil {
		err = l.warm(ctx)
	}
	if err != nil {
		return err
	}
	l.before = l.acknowledged()
	ss, err := split(ctx, l.ids)
	after := l.acknowledged()
	if err != nil {
		return err
	}
	l.going.Lock()
	defer l.going.Unlock()
	if err = l.check(ctx, a, ss, after); err != nil {
		err = fmt.Errorf("tag %q over %d volumes: %w", tag, len(ss), err)
	}
	errs := make([]error, len(ss))
	var back sync.WaitGroup
	for i, s := range ss {
		back.Go(func() { errs[i] = a.GiveBack(ctx, s.ID) })
	}
	back.Wait()
	return errors.Join(append(errs, err)...)
}

// warm waits until every stream is going again: it has written to several of
// the volumes.
func (l *Load) warm(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	from := l.acknowledged()
	for {
		now, enough := l.acknowledged(), uint64(min(len(l.devs), 8))
		cold := false
		for i := range now {
			cold = cold || now[i] < from[i]+enough
		}
		l.mu.Lock()
		err := l.err
		l.mu.Unlock()
		if !cold || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// check reads each stream from the snapshots of all volumes. They hold a prefix,
// which ends after what was acknowledged before the split, and before what was
// begun after it: of each stream one write may have been under way then.
func (l *Load) check(ctx context.Context, a *arrays.Array, ss []driver.Snapshot, after []uint64) error {
	var splits []io.ReaderAt
	for _, s := range ss {
		d, err := a.Open(ctx, s.ID)
		if err != nil {
			return err
		}
		if c, ok := d.(io.Closer); ok {
			defer c.Close()
		}
		splits = append(splits, d)
	}
	for i, s := range streams {
		last, err := s.Check(splits)
		switch {
		case err != nil:
			return err
		case last < l.before[i]:
			return &TornError{fmt.Errorf("stream %d: write %d was acknowledged before the split began, the split ends with %d", s.ID, l.before[i], last)}
		case last > after[i]+1:
			return &TornError{fmt.Errorf("stream %d: write %d is in the split, which had returned when write %d began", s.ID, last, after[i]+2)}
		}
	}
	return nil
}
