package embedded

import (
	"context"
	"sync"

	"github.com/cleave-san/cleave/arrays/driver"
)

// tagLocks lets one split at a time work for a tag, and lets others wait until
// none does: a split that outlived its caller is not missed by the caller's
// Lookup.
type tagLocks struct {
	mu   sync.Mutex
	held map[driver.Tag]chan struct{}
}

func (t *tagLocks) lock(ctx context.Context, tag driver.Tag) (release func(), err error) {
	for {
		t.mu.Lock()
		busy := t.held[tag]
		if busy == nil {
			done := make(chan struct{})
			if t.held == nil {
				t.held = map[driver.Tag]chan struct{}{}
			}
			t.held[tag] = done
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.held, tag)
				t.mu.Unlock()
				close(done)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, notBegun(ctx, "waiting for tag "+string(tag))
		}
	}
}

// wait returns when nobody works for the tag.
func (t *tagLocks) wait(ctx context.Context, tag driver.Tag) error {
	release, err := t.lock(ctx, tag)
	if err == nil {
		release()
	}
	return err
}
