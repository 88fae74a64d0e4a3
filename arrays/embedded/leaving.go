package embedded

import "sync/atomic"

// leaving is a mirror that has been split off while the split is not yet
// certain. If that comes to nothing, after a crash too, the mirror goes back
// lacking what was written in the epoch that began: what after holds, or a mark
// of the intent log covers.
//
// So a mark may be cleared meanwhile, as soon as what it stands for is stable
// here as well; nobody has to wait for the split.
type leaving struct {
	p      *plex    // nil where a clone of a mirror is taken
	before *mapFile // of the epoch that ended; nil if nobody wanted to know
	after  *mapFile // of the epoch that began
	stuck  atomic.Bool
}

// settle makes stable what marks stand for. l may be nil.
func (l *leaving) settle() error {
	if l == nil {
		return nil
	}
	if err := l.settleMirror(); err != nil {
		if l.stuck.Load() {
			return err
		}
		return errNotNow // until the split is undone and the mirror known to be broken
	}
	if l.before != nil {
		if err := l.before.flush(); err != nil {
			return err
		}
	}
	return l.after.flush()
}

func (l *leaving) settleMirror() error {
	if l.p == nil {
		return nil
	}
	err := l.p.failed()
	if err == nil {
		if err = l.p.f.Sync(); err != nil {
			l.p.fail(err)
		}
	}
	return err
}

// leave comes before the instant: whoever clears marks in the epoch that begins
// knows of it. before is the map of the epoch that ends.
func (k *cut) leave(before *mapFile) {
	l := &leaving{before: before, after: k.dirty}
	if k.clone == nil {
		l.p = k.p
	}
	k.v.leaving.Store(l)
}

// left says that a split is certain, or undone for certain. No clean looks at
// its maps any more when it returns.
func (s *set) left() {
	s.leaving.Store(nil)
	s.cleaning.Lock()
	s.cleaning.Unlock() //nolint:staticcheck // it was waited for
	s.log.wake()
}

// stay says that whether a split is certain can't be known before a restart.
func (s *cuts) stay() {
	for _, k := range s.parts {
		if l := k.v.leaving.Load(); l != nil {
			l.stuck.Store(true)
		}
		k.v.log.wake()
	}
}
