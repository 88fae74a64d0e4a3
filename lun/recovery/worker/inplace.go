package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// Plan is what a recovery in place is about to do; see recovery.InPlace.
type Plan struct {
	Volumes   []recovery.Recovered `json:"volumes"`
	Discarded []string             `json:"discarded,omitempty"`
	Resumed   bool                 `json:"resumed,omitempty"`
	Done      bool                 `json:"done,omitempty"`
	Bytes     int64                `json:"bytes"`
	// Rewritten is for each source the extents that may differ from the split
	// once it has begun, in bytes of the disk that the guest sees.
	Rewritten [][]lun.Extent `json:"rewritten"`
	// Warnings are about what is on the devices and is read all the same.
	Warnings []*Error `json:"warnings,omitempty"`
}

// InPlace puts volumes of s.Sources back to their snapshots on the sources
// themselves, chosen by s.Snapshots; see recovery.PrepareInPlace. The worker
// gets to write to them, so that one that was taken over could write anything
// there, and there alone.
//
// begin is called with the plan before the first write; its error ends all, and
// nothing was written. Whoever has to know what was rewritten, come what may,
// records the plan there. progress gets the bytes written, out of Plan.Bytes. On
// an error after begin, and after the end of ctx or of this process, InPlace may
// be called again, and goes on.
//
// The sources must be writable, and used by nobody else.
func InPlace(ctx context.Context, s Spec, discardOthers bool, begin func(*Plan) error, progress recovery.Progress) (*Plan, error) {
	s.defaults()
	s.Detachable = false
	if err := s.check(); err != nil {
		return nil, err
	}
	c := config{Snapshots: s.Snapshots, Discard: discardOthers}
	var extra []*os.File
	if s.Journal != nil {
		f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", s.Journal.Fd()), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("redo journal: %w", err)
		}
		c.JournalFD, extra = 3, append(extra, f)
	}
	p, err := launch(modeInPlace, &s, c, ownID(), extra)
	if err != nil {
		return nil, err
	}
	rep, err := p.listen(ctx, s.Timeout)
	for err == nil && rep.Reading {
		rep, err = p.listen(ctx, s.Timeout)
	}
	if err != nil {
		return nil, err
	}
	defer p.end()
	plan := rep.Plan
	if plan == nil || len(plan.Rewritten) != s.disks() {
		return nil, errors.New("recovery worker's answer makes no sense: it has no plan for each device")
	}
	if err := begin(plan); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(p.stdin, wordBegin+"\n"); err != nil {
		p.end()
		return nil, p.death()
	}
	for {
		rep, err := p.listen(ctx, s.Timeout)
		switch {
		case err != nil:
			return nil, err
		case rep.Done:
			return plan, nil
		case progress != nil:
			progress(min(rep.Written, plan.Bytes))
		}
	}
}

// sayEvery is how often a worker that writes says how far it is. It is a sign of
// life, too.
const sayEvery = 100 * time.Millisecond

// inPlace says its plan, and carries it out when it is told to.
func (c *config) inPlace(ctx context.Context, contents *open.Contents, begin <-chan struct{}, stdout io.Writer) error {
	o := recovery.InPlaceOptions{Snapshots: c.Snapshots, DiscardOthers: c.Discard}
	var alive atomic.Bool
	alive.Store(true)
	if c.JournalFD != 0 {
		f := os.NewFile(uintptr(c.JournalFD), "journal")
		defer f.Close()
		o.Journal = &beating{File: f, stdout: stdout, on: &alive}
	}
	p, err := recovery.PrepareInPlace(ctx, contents, o)
	alive.Store(false) // from here on there are others
	if err != nil {
		return err
	}
	plan := &Plan{Volumes: p.Volumes, Resumed: p.Resumed, Done: p.Done, Bytes: p.Bytes(), Rewritten: p.Rewritten(), Warnings: describe(contents).Warnings}
	for _, d := range p.Discarded {
		plan.Discarded = append(plan.Discarded, clean(d))
	}
	if err := say(stdout, reply{Plan: plan}); err != nil {
		return err
	}
	select {
	case <-begin:
	case <-ctx.Done():
		return ctx.Err()
	}
	var mu sync.Mutex
	written := int64(0)
	// Also while the devices are being synced, which may take long.
	done, ticks := make(chan struct{}), time.NewTicker(sayEvery)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				mu.Lock()
				n := written
				mu.Unlock()
				if err := say(stdout, reply{Written: n}); err != nil {
					return // nobody listens: the lifeline ends the work
				}
			case <-done:
				return
			}
		}
	})
	err = p.Run(ctx, func(n int64) {
		mu.Lock()
		written = n
		mu.Unlock()
	})
	close(done)
	wg.Wait()
	if err != nil {
		return fmt.Errorf("recover in place: %w", err)
	}
	return say(stdout, reply{Done: true})
}

// beating is a journal, a large one of which takes long to be read before there is a
// plan: what is read of it is a sign of life.
type beating struct {
	*os.File
	stdout io.Writer
	on     *atomic.Bool
	last   time.Time
}

func (b *beating) ReadAt(p []byte, off int64) (int, error) {
	if b.on.Load() && time.Since(b.last) > sayEvery {
		b.last = time.Now()
		if err := say(b.stdout, reply{Reading: true}); err != nil {
			return 0, err
		}
	}
	return b.File.ReadAt(p, off)
}
