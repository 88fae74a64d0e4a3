package embedded

import (
	"errors"
	"sync/atomic"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// plex is one raw file of a set that is kept equal.
type plex struct {
	id   lun.Identity
	pool string
	path string
	f    disk.File
	busy atomic.Int32 // reads under way
	err  atomic.Pointer[error]
	// writing is how many writes are under way that go to one file after the
	// other.
	writing atomic.Int32

	warned atomic.Bool // an event was sent about it
}

// failed is the first error of a write or sync to the plex, nil if there was
// none. After one, the file's content is not to be trusted.
func (p *plex) failed() error {
	if e := p.err.Load(); e != nil {
		return *e
	}
	return nil
}

func (p *plex) fail(err error) { p.err.CompareAndSwap(nil, &err) }

// epoch is who takes part in the I/O of a set from one instant to the next. It
// does not change; what changes is which epoch is current. An operation belongs
// to the epoch in which it was admitted, and finishes there.
type epoch struct {
	insync  []*plex // never empty unless the set is offline; reads come from these
	filling []*plex // are written to, not read from
	// joining are those filling that are about to be in sync: what is synced is
	// stable on them as well.
	joining []*plex
	// fixed sends all reads to insync[0]: the others may differ from it until
	// the marked regions have been copied after a crash.
	fixed bool
	// dirty gets the regions written to, nil where nobody wants to know.
	dirty *mapFile
	// missed get them as well: what mirrors that are broken miss.
	missed []*mapFile

	// users counts operations, 1 while the epoch is current, and 1 while the
	// epoch before is not idle: an epoch is idle only when all before it are.
	//
	// Those who find at the gate that they came too late are counted for a moment,
	// too, also when it was 0 already.
	users atomic.Int64
	over  atomic.Bool   // users was 0
	idle  chan struct{} // closed then
	next  *epoch        // the one that followed
}

func newEpoch(e epoch0) *epoch {
	n := &epoch{insync: e.insync, filling: e.filling, joining: e.joining, fixed: e.fixed, dirty: e.dirty, missed: e.missed, idle: make(chan struct{})}
	n.users.Store(1)
	return n
}

// epoch0 is what an epoch consists of, before it begins.
type epoch0 struct {
	insync, filling, joining []*plex
	fixed                    bool
	dirty                    *mapFile
	missed                   []*mapFile
}

func (e *epoch) parts() epoch0 {
	return epoch0{insync: e.insync, filling: e.filling, joining: e.joining, fixed: e.fixed, dirty: e.dirty, missed: e.missed}
}

// note marks a range as written to, before it is.
func (e *epoch) note(off, n int64) {
	if e.dirty != nil {
		e.dirty.setRange(off, n, regionSize)
	}
	for _, m := range e.missed {
		m.setRange(off, n, regionSize)
	}
}

// flushMaps makes stable what was noted.
func (e *epoch) flushMaps() error {
	var errs []error
	if e.dirty != nil {
		errs = append(errs, e.dirty.flush())
	}
	for _, m := range e.missed {
		errs = append(errs, m.flush())
	}
	return errors.Join(errs...)
}

// leave ends an operation, and the epoch's own share when it is no longer
// current.
func (e *epoch) leave() {
	for e != nil && e.users.Add(-1) == 0 && e.over.CompareAndSwap(false, true) {
		close(e.idle)
		e = e.next
	}
}

// follow makes n the epoch after e, which was the current one. Operations must
// be kept from joining meanwhile; e is left when they no longer are.
func (e *epoch) follow(n *epoch) {
	n.users.Add(1)
	e.next = n
}

// without returns ps without p, leaving ps as it is.
func without(ps []*plex, p *plex) []*plex {
	out := make([]*plex, 0, len(ps))
	for _, q := range ps {
		if q != p {
			out = append(out, q)
		}
	}
	return out
}

func with(ps []*plex, p *plex) []*plex {
	return append(append(make([]*plex, 0, len(ps)+1), ps...), p)
}
