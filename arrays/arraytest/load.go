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
		err := underLoad(t.Context(), a, driver.Tag(fmt.Sprintf("armed-%d", i)), l.Volumes, func(ctx context.Context, tag driver.Tag, ids []driver.VolumeID, load *load) ([]driver.Snapshot, error) {
			if err := a.Arm(ctx, tag, ids, time.Minute); err != nil {
				return nil, err
			}
			load.mark() // what is acknowledged from now on counts as well
			return a.Commit(ctx, tag)
		})
		if err != nil {
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
// and returns an error if the snapshots hold no prefix of each stream. The
// snapshots are given back.
func SplitUnderLoad(ctx context.Context, a *arrays.Array, tag driver.Tag, vs []Volume) error {
	return underLoad(ctx, a, tag, vs, func(ctx context.Context, tag driver.Tag, ids []driver.VolumeID, _ *load) ([]driver.Snapshot, error) {
		return a.Split(ctx, tag, ids)
	})
}

type splitFunc func(context.Context, driver.Tag, []driver.VolumeID, *load) ([]driver.Snapshot, error)

func underLoad(ctx context.Context, a *arrays.Array, tag driver.Tag, vs []Volume, split splitFunc) error {
	ids := make([]driver.VolumeID, len(vs))
	devs := make([]lun.Device, len(vs))
	for i, v := range vs {
		ids[i], devs[i] = v.ID, v.Device
	}
	if err := a.Prepare(ctx, ids, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}); err != nil {
		return err
	}
	load, err := startLoad(devs, streams)
	if err != nil {
		return err
	}
	ss, err := split(ctx, tag, ids, load)
	if lerr := load.stop(); err == nil {
		err = lerr
	}
	if err != nil {
		return err
	}
	err = checkSplits(ctx, a, ss, load)
	for _, s := range ss {
		err = errors.Join(err, a.GiveBack(ctx, s.ID))
	}
	return err
}

// streams write all at once, in sizes that are written whole and in parts.
var streams = []Stream{
	{ID: 1, Base: 0, Size: 4096, Slots: 16},
	{ID: 2, Base: 1 << 20, Size: 512, Slots: 8},
	{ID: 3, Base: 2<<20 - 1024, Size: 192 << 10, Slots: 2},
	{ID: 4, Base: 3 << 20, Size: 16 << 10, Slots: 8},
}

// checkSplits checks each stream in the splits of all volumes.
func checkSplits(ctx context.Context, a *arrays.Array, ss []driver.Snapshot, load *load) error {
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
		if least := load.least[i]; err == nil && last < least {
			err = &TornError{fmt.Errorf("stream %d: write %d was acknowledged before the split began, the split ends with %d", s.ID, least, last)}
		}
		if err != nil {
			return fmt.Errorf("tag %q over %d volumes: %w", ss[0].Tag, len(ss), err)
		}
	}
	return nil
}

// load is streams being written.
type load struct {
	done  []atomic.Uint64 // the last write of each stream that was acknowledged
	least []uint64        // the same at the last mark
	quit  chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	err   error
}

// mark notes what the splits have to hold at least.
func (l *load) mark() {
	for i := range l.done {
		l.least[i] = l.done[i].Load()
	}
}

// startLoad wipes the streams' areas, begins to write, and returns when each
// stream has gone over all volumes.
func startLoad(devs []lun.Device, streams []Stream) (*load, error) {
	l := &load{quit: make(chan struct{}), done: make([]atomic.Uint64, len(streams)), least: make([]uint64, len(streams))}
	for _, s := range streams {
		for _, d := range devs {
			if _, err := d.WriteAt(make([]byte, s.Area()), s.Base); err != nil {
				return nil, err
			}
		}
	}
	var warm sync.WaitGroup
	for i, s := range streams {
		warm.Add(1)
		l.wg.Go(func() { l.write(s, devs, &l.done[i], sync.OnceFunc(warm.Done)) })
	}
	warm.Wait()
	l.mark()
	return l, nil
}

// write writes a stream until the load is stopped. It calls warm when the
// stream has gone over all volumes, or ends.
func (l *load) write(s Stream, devs []lun.Device, done *atomic.Uint64, warm func()) {
	defer warm()
	buf := make([]byte, s.Size)
	for k := uint64(1); ; k++ {
		if err := s.Write(devs, k, buf); err != nil {
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
			return
		}
		done.Store(k)
		if k == uint64(len(devs)) {
			warm()
		}
		select {
		case <-l.quit:
			return
		default:
		}
	}
}

func (l *load) stop() error {
	close(l.quit)
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
