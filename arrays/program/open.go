package program

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/localdev"
	"github.com/cleave-san/cleave/lun"
)

// Open implements driver.Opener: the program names a file or block device of this
// host, which is opened for reading.
func (d *Driver) Open(ctx context.Context, s driver.SnapshotID) (lun.Device, error) {
	var at opened
	if err := d.ask(ctx, callOpen, string(s), snapshotArgs{s}, &at); err != nil {
		return nil, err
	}
	if err := callOpen.checkPath(at.Path); err != nil {
		return nil, err
	}
	f, err := localdev.Open(at.Path)
	if err != nil {
		return nil, fmt.Errorf("the program's result of open: %w", err)
	}
	return f, nil
}

// Rewrite implements driver.Rewriter: the program names a file or block device of
// this host, which is written, and is told afterwards which regions of it were. For
// the program the snapshot is Skewed from the first of these calls on: a caller that
// dies in between makes no second one.
func (d *Driver) Rewrite(ctx context.Context, s driver.SnapshotID) (lun.Device, error) {
	var at opened
	if err := d.ask(ctx, callRewrite, string(s), snapshotArgs{s}, &at); err != nil {
		return nil, err
	}
	if err := callRewrite.checkPath(at.Path); err != nil {
		return nil, err
	}
	d.rewriting.add(s)
	w, err := localdev.Rewrite(ctx, at.Path, localdev.Hooks{After: func(list []lun.Extent) error {
		ctx, cancel := context.WithTimeout(context.Background(), toldWithin)
		defer cancel()
		args := rewrittenArgs{s, make([]region, len(list))}
		for i, x := range list {
			args.Regions[i] = region{x.Off, x.Len}
		}
		return d.ask(ctx, callRewritten, string(s), args, nil)
	}})
	if err != nil {
		d.rewriting.remove(s)
		return nil, fmt.Errorf("the program's result of rewrite: %w", err)
	}
	return &rewriter{Writer: w, over: func() { d.rewriting.remove(s) }}, nil
}

// toldWithin bounds the call that ends a rewrite: nobody's context is there then.
const toldWithin = 30 * time.Second

// rewriter is a snapshot that nobody else gets at until it is closed.
type rewriter struct {
	*localdev.Writer
	once sync.Once
	over func()
}

func (r *rewriter) Close() error {
	defer r.once.Do(r.over)
	return r.Writer.Close()
}

// rewriting are the snapshots that this process writes to, or waits to.
type rewriting struct {
	mu  sync.Mutex
	ids []driver.SnapshotID // more than once: by one who waits for the other
}

func (r *rewriting) add(s driver.SnapshotID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids = append(r.ids, s)
}

func (r *rewriting) remove(s driver.SnapshotID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.ids, s); i >= 0 {
		r.ids = slices.Delete(r.ids, i, i+1)
	}
}

// refuse is the error of a call that needs the snapshot for itself.
func (r *rewriting) refuse(s driver.SnapshotID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.ids, s) {
		return driver.Errorf(driver.Busy, "snapshot %q is being rewritten", s)
	}
	return nil
}
