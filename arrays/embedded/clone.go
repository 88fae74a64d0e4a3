package embedded

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
)

// clone is what a cut takes instead of a mirror where the volume's policy says
// so: a file of its own that becomes, at the instant, a reflink of the mirror's.
//
// A mirror that comes off gets the writes that were admitted before the instant
// whenever they end; a clone holds what was in the file when it was made. So
// the volume's writes are kept at rest: the clone's gate is a range over the
// whole volume, which is granted when all writes before it have ended, and
// which all later ones wait for. Only then do the group's epochs change, and
// the gate opens when the file is cloned. Reads and flushes go on.
//
// The order of writes over the group is kept: let F be the moment at which the
// epochs change. A write is in the snapshots if and only if it was applied (on
// a volume that is cloned) or admitted (on one whose mirror comes off) before
// F. Of two writes, the second issued after the first was acknowledged, the
// first was applied, hence admitted, before the second began: the second is
// never in without the first.
type clone struct {
	mirrorRecord
	plex *plex

	gate span
	shut time.Time
	open sync.Once
	held time.Duration // from shut to open
}

// plex is the file that the snapshot is made of.
func (k *cut) plex() *plex {
	if k.clone != nil {
		return k.clone.plex
	}
	return k.p
}

// cloned are the parts that are clones.
func (s *cuts) cloned() []*cut {
	var out []*cut
	for _, k := range s.parts {
		if k.clone != nil {
			out = append(out, k)
		}
	}
	return out
}

// cloneFiles are the files of the clones and their labels. They are in the
// trash from before they are made until the split is certain.
func (s *cuts) cloneFiles() (out []fileRef) {
	for _, k := range s.cloned() {
		out = append(out, k.clone.files()...)
	}
	return out
}

// makeClones makes the clones' files, empty and stable, in the pools of what
// they will be clones of.
func (s *cuts) makeClones(a *Array) error {
	return each(s.cloned(), func(k *cut) (err error) {
		if k.clone.plex, err = a.createPlex(&k.clone.mirrorRecord, k.v.size.Load()); err != nil {
			err = fmt.Errorf("%s: making a file to clone into: %w", k.v.label, err)
		}
		return err
	})
}

// dropClones removes what makeClones made.
func (s *cuts) dropClones(a *Array) {
	for _, k := range s.cloned() {
		if k.clone.plex != nil {
			k.clone.plex.f.Close()
		}
	}
	if files := s.cloneFiles(); len(files) > 0 {
		a.discard(files)
	}
}

// flushWorth is the time from which flushing a file took long enough for much
// to have been written meanwhile: it is then flushed again before the hold.
const flushWorth = 50 * time.Millisecond

// atRest runs flip, the change of epochs, and makes the clones, while nothing is
// written to what is cloned: see clone. Without clones it is flip alone. Writes
// are held for limit at most; if more is needed they go on, and it is an error.
//
// A clone takes as long as writing out what is dirty in the file, so that this
// is done before; on a file system without load what remains is milliseconds.
func (s *cuts) atRest(limit time.Duration, flip func() error) error {
	cloned := s.cloned()
	if len(cloned) == 0 {
		return flip()
	}
	for range 3 {
		begun := time.Now()
		if err := each(cloned, (*cut).flush); err != nil {
			return err
		}
		if time.Since(begun) < flushWorth {
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for _, k := range cloned {
		k.clone.shut = time.Now()
		k.v.order.ask(&k.clone.gate, 0, math.MaxInt64)
	}
	open := func() {
		for _, k := range cloned {
			k.reopen()
		}
	}
	defer open()
	for _, k := range cloned {
		if !k.v.order.await(ctx, &k.clone.gate) {
			return driver.Errorf(driver.Busy, "%s: writes under way did not end within %v, for which a snapshot by reflink may hold others", k.v.label, limit)
		}
	}
	if err := flip(); err != nil {
		return err
	}
	keep := context.AfterFunc(ctx, open)
	err := each(cloned, (*cut).cloneNow)
	if !keep() && err == nil {
		err = driver.Errorf(driver.Busy, "cloning the files of %d volumes took longer than the %v for which writes may be held", len(cloned), limit)
	}
	return err
}

// cloneNow makes the clone and lets writes go on.
func (k *cut) cloneNow() error {
	defer k.reopen()
	err := disk.Clone(k.clone.plex.f, k.p.f)
	if err == nil {
		// Should the mirror have been found bad meanwhile, so may be the clone.
		err = k.p.failed()
	}
	if err != nil {
		return fmt.Errorf("%s: cloning mirror %s: %w", k.v.label, k.p.id, noSpace(err))
	}
	return nil
}

// reopen lets writes go on that wait for the clone. Doing so again is nothing.
func (k *cut) reopen() {
	k.clone.open.Do(func() {
		k.clone.held = time.Since(k.clone.shut)
		k.v.order.unlock(&k.clone.gate)
	})
}

// withoutFiles returns trash without the files.
func withoutFiles(trash, files []fileRef) []fileRef {
	return slices.DeleteFunc(slices.Clone(trash), func(f fileRef) bool { return slices.Contains(files, f) })
}
