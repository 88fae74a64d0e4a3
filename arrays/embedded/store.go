package embedded

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
)

// store keeps the catalogue on disk. Changes that are asked for while one is
// being written are written together, by one of those who wait: a resync of a
// thousand volumes costs a few writes of the catalogue, not thousands.
type store struct {
	fs   disk.FS
	path string
	cur  atomic.Pointer[catalog] // never changed, only replaced

	mu     sync.Mutex // queue
	queue  []*storeChange
	write  sync.Mutex // held by whoever writes for all in the queue
	failed error      // under write
}

// storeChange is one change that somebody waits for.
type storeChange struct {
	fn   func(*catalog) error
	done bool // under write
	err  error
}

// read returns the catalogue as it is now; the caller must not change it. It
// waits for nobody.
func (s *store) read() *catalog { return s.cur.Load() }

// update changes the catalogue: when it returns nil, all that fn did is stable.
// After an error nothing has changed, unless it is of kind OutcomeUnknown: then
// no further change is accepted until the array is opened again.
//
// fn is called once, by whoever writes, after the changes that were asked for
// before; it may hold no lock that another fn waits for. An fn that returns an
// error costs only its own change.
func (s *store) update(fn func(*catalog) error) error {
	c := &storeChange{fn: fn}
	s.mu.Lock()
	s.queue = append(s.queue, c)
	s.mu.Unlock()
	s.write.Lock()
	defer s.write.Unlock()
	if !c.done {
		s.mu.Lock()
		batch := s.queue
		s.queue = nil
		s.mu.Unlock()
		s.writeAll(batch)
	}
	return c.err
}

// writeAll carries out changes in their order. s.write is held.
func (s *store) writeAll(batch []*storeChange) {
	next := s.cur.Load().clone()
	changed := false
	for _, c := range batch {
		c.done = true
		if c.err = s.failed; c.err != nil {
			continue
		}
		try := next
		if len(batch) > 1 {
			try = next.clone() // what an fn did before it failed must not stay
		}
		if c.err = c.fn(try); c.err == nil {
			next, changed = try, true
		}
	}
	if !changed {
		return
	}
	if err := s.replace(next); err != nil {
		for _, c := range batch {
			if c.err == nil {
				c.err = err
			}
		}
		return
	}
	s.cur.Store(next)
}

func (s *store) replace(next *catalog) error {
	next.Seq++
	b, err := encodeRecord(catalogKind, catalogVersion, next)
	if err != nil {
		return err
	}
	if err := disk.Replace(s.fs, s.path, b); errors.Is(err, disk.ErrUncertain) {
		s.failed = driver.Errorf(driver.OutcomeUnknown, "the catalogue takes no more changes until a restart: %w", err)
		return s.failed
	} else if err != nil {
		return fmt.Errorf("writing the catalogue: %w", noSpace(err))
	}
	return nil
}

// load reads the catalogue; os.ErrNotExist if there is none. One of an older
// version is kept beside, under a name that ends in its version, and is written
// in ours by the next update; upgraded is its version. It is removed by the
// start after that: by then ours has been read.
func (s *store) load() (upgraded int, err error) {
	b, err := disk.ReadFile(s.fs, s.path, maxRecord)
	if err != nil {
		return 0, err
	}
	c, version, err := decodeAnyCatalog(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.path, err)
	}
	if version < catalogVersion {
		if err := disk.Replace(s.fs, s.backup(version), b); err != nil {
			return 0, fmt.Errorf("keeping the catalogue of version %d: %w", version, err)
		}
		upgraded = version
	} else {
		for v := 1; v < catalogVersion; v++ {
			if err := s.fs.Remove(s.backup(v)); err != nil && !isNotExist(err) {
				return 0, fmt.Errorf("removing the catalogue of version %d: %w", v, err)
			}
		}
	}
	s.cur.Store(c)
	return upgraded, nil
}

func (s *store) backup(version int) string { return fmt.Sprintf("%s.v%d", s.path, version) }
