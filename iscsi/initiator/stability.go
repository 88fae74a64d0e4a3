package initiator

import (
	"errors"
	"fmt"
	"sync"
)

// stability keeps account of which acknowledged writes are stable.
type stability struct {
	mu     sync.Mutex
	acked  uint64 // writes acknowledged, a count
	synced uint64 // how many of them are stable, or reported as lost
	oldest uint64 // epoch of the oldest that is neither
	losses uint64 // reports
}

// wrote takes down an acknowledged write that began in an epoch.
func (a *stability) wrote(epoch uint64) {
	a.mu.Lock()
	if a.acked == a.synced || epoch < a.oldest {
		a.oldest = epoch
	}
	a.acked++
	a.mu.Unlock()
}

// begin is where a Sync stands. clean says that there is nothing to do.
func (a *stability) begin() (upTo, losses uint64, clean bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.acked, a.losses, a.acked == a.synced
}

// settle ends a Sync that began at upTo and ended well in an epoch. It reports false if writes from before that are
// lost, to this Sync and to every other that is under way.
func (a *stability) settle(upTo, losses, epoch uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.synced < upTo {
		lost := a.oldest < epoch
		a.synced, a.oldest = upTo, epoch
		if lost {
			a.losses++
		}
	}
	return a.losses == losses
}

// Sync makes every write that was acknowledged before the call stable. It fails
// with ErrCacheLost, once, where that can't be said of all of them; see the
// package comment. With nothing written since the last one it bothers nobody.
func (d *Disk) Sync() error {
	if d.ReadOnly() || !d.facts.cached {
		return nil
	}
	upTo, losses, clean := d.stable.begin()
	if clean {
		return nil
	}
	_, err := d.run(&command{cdb: [16]byte{opSyncCache10}}, false)
	var sense *SenseError
	if errors.As(err, &sense) && sense.unsupported() {
		err = nil // nothing to flush, then
	}
	if err != nil {
		return fmt.Errorf("%s: SYNCHRONIZE CACHE: %w", d.name, err)
	}
	// The epoch is looked at after the flush: what it flushed was of this one.
	if !d.stable.settle(upTo, losses, d.epoch.Load()) {
		return fmt.Errorf("%s: %w", d.name, ErrCacheLost)
	}
	return nil
}
