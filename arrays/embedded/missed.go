package embedded

import (
	"errors"
	"slices"

	"github.com/cleave-san/cleave/lun"
)

// What a mirror misses while it is broken is kept in a map, so that it is filled
// with no more than that when its file can be used again. The map begins with
// the regions that the intent log has marked when the mirror is dropped, since
// what was written to them may have failed or not be stable on it, and gets
// every write from then on.
//
// A mirror about whose content nothing is known has All set and no maps: another
// takes its place.

func missedName(mirror lun.Identity) string { return mirror.String() + ".missed" }

// errCut says that a file is shorter than it was: what is in it is not to be
// trusted, whatever its length later.
var errCut = errors.New("it was truncated")

// startMissed begins the map of what p misses, before p is dropped, and reports
// whether there is one, stable. It is called under set.state, so that no mark is
// cleared for what p has not got: that would take p's sync to succeed, or p to be
// dropped first. From the epoch that begins here on, writes are noted in the
// map; those before are marked, unless they are stable on p.
func (v *volume) startMissed(p *plex) bool {
	v.mu.Lock()
	had := v.missed[p.id]
	v.mu.Unlock()
	if had != nil { // it was on its way back; what is not flushed yet is marked until it is
		return had.intact()
	}
	m, err := createMap(v.a.fs, v.a.mapPath(missedName(p.id)), v.size.Load(), regionSize)
	if err == nil {
		next := v.cur.parts()
		next.missed = append(slices.Clip(next.missed), m)
		v.flip(next)
		v.setMissed(p.id, m)
		orScaled(m, v.log.file)
		err = errors.Join(m.flush(), v.a.fs.SyncDir(v.a.maps))
	}
	if err != nil {
		v.a.o.Logger.Warn("a failed mirror will have to be filled in full", "volume", v.name, "mirror", p.id.String(), "error", err)
	}
	return err == nil
}

// breaks makes m broken. known: a map of what it misses is kept.
func (m *mirrorRecord) breaks(cause error, known bool, size int64) {
	m.State, m.Reason, m.Away = broken, cause.Error(), isAway(cause)
	if !known || m.All || m.FileID == "" {
		m.Todo, m.All, m.Length = nil, true, 0
		return
	}
	m.Length = size
	if name := missedName(m.ID); !slices.Contains(m.Todo, name) {
		m.Todo = append(slices.Clip(m.Todo), name)
	}
}

func (v *volume) setMissed(mirror lun.Identity, m *mapFile) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m == nil {
		delete(v.missed, mirror)
	} else {
		v.missed[mirror] = m
	}
}

// bringUpMissed has the epoch keep track of what broken mirrors miss. broke are
// those that broke just now, whose files could not be opened.
func (v *volume) bringUpMissed(r *volumeRecord, broke map[lun.Identity]error, e *epoch0) error {
	for i := range r.Mirrors {
		m := &r.Mirrors[i]
		if cause, now := broke[m.ID]; now {
			m.breaks(cause, !errors.Is(cause, errCut), r.Size)
			m.Away = m.Away || v.a.isPoolAway(m.Pool)
			if !m.All {
				missed, err := createMap(v.a.fs, v.a.mapPath(missedName(m.ID)), r.Size, regionSize)
				if err != nil {
					return err
				}
				missed.close() // opened below
			}
		}
		if m.State != broken || m.All || !slices.Contains(m.Todo, missedName(m.ID)) || v.missed[m.ID] != nil {
			continue
		}
		missed, err := v.openOrAll(missedName(m.ID), r.Size, regionSize)
		if err != nil {
			return err
		}
		v.missed[m.ID] = missed
		e.missed = append(e.missed, missed)
		orScaled(missed, v.log.file) // whose marks are cleared when this is flushed
	}
	return nil
}

// dropMissed forgets the map of a mirror that is back or gone. v.admin is held.
func (v *volume) dropMissed(mirror lun.Identity) {
	v.mu.Lock()
	m := v.missed[mirror]
	v.mu.Unlock()
	if m == nil {
		return
	}
	v.state.Lock()
	next := v.cur.parts()
	next.missed = slices.DeleteFunc(slices.Clone(next.missed), func(x *mapFile) bool { return x == m })
	old := v.flip(next)
	v.state.Unlock()
	<-old.idle
	v.setMissed(mirror, nil)
	m.close()
	v.a.scrap(m.path)
}
