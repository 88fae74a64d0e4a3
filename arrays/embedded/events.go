package embedded

import (
	"fmt"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// EventKind is what happened.
type EventKind string

const (
	MirrorDropped   EventKind = "mirror-dropped"   // it erred; the volume goes on
	VolumeOffline   EventKind = "volume-offline"   // no mirror of it can be used
	SnapshotInvalid EventKind = "snapshot-invalid" // its file can't be used
	SplitUndone     EventKind = "split-undone"     // a group did not become whole
	Recovered       EventKind = "recovered"        // mirrors are equal after a crash
	MapDamaged      EventKind = "map-damaged"      // a bitmap or log failed its checksum: more is copied
	ResyncDone      EventKind = "resync-done"
	ResyncStalled   EventKind = "resync-stalled"
	LeftOver        EventKind = "left-over" // a file that nothing refers to
	Unmirrored      EventKind = "unmirrored"
	MirrorReturned  EventKind = "mirror-returned" // a broken one can be used again, and is filled
	PoolOffline     EventKind = "pool-offline"    // its directory is gone, or another one
	PoolReadOnly    EventKind = "pool-read-only"  // it can't be written to
	PoolBack        EventKind = "pool-back"       // it can be used again
	PoolLow         EventKind = "pool-low"        // little room is left: see PoolLimit
	PoolRoom        EventKind = "pool-room"       // there is room again
	StateLow        EventKind = "state-low"       // little room is left for the catalogue and maps
	StateRoom       EventKind = "state-room"      // there is room for them again
	FileReplaced    EventKind = "file-replaced"   // a mirror's file is another than it was
	ClockJumped     EventKind = "clock-jumped"
	ScrubDone       EventKind = "scrub-done"
	ScrubDiffers    EventKind = "scrub-differs" // mirrors are not equal
	Upgraded        EventKind = "upgraded"      // records are of this version now
)

// Severity is how much an event matters, from Info to Error.
type Severity string

const (
	Info    Severity = "info"    // as it should be
	Warning Severity = "warning" // something is to be done, and data are safe
	Error   Severity = "error"   // data can't be used, or are at risk
)

// severities are those that are not Warning.
var severities = map[EventKind]Severity{
	Recovered: Info, ResyncDone: Info, PoolBack: Info, PoolRoom: Info, StateRoom: Info, ScrubDone: Info, Upgraded: Info,
	VolumeOffline: Error, SnapshotInvalid: Error, PoolOffline: Error, PoolReadOnly: Error, ScrubDiffers: Error,
}

// SeverityOf is how much events of a kind matter.
func SeverityOf(k EventKind) Severity {
	if s, ok := severities[k]; ok {
		return s
	}
	return Warning
}

func (s Severity) rank() int {
	switch s {
	case Info:
		return 1
	case Error:
		return 3
	default:
		return 2
	}
}

// Event is one thing that happened without having been asked for. Seq says in
// which order events happened, over restarts as well; At is the host's clock,
// which may jump.
type Event struct {
	Seq      uint64          `json:"seq"`
	At       time.Time       `json:"at"`
	Kind     EventKind       `json:"kind"`
	Severity Severity        `json:"severity"`
	Volume   driver.VolumeID `json:"volume,omitempty"`
	Name     string          `json:"name,omitempty"` // the volume's name
	Mirror   lun.Identity    `json:"mirror,omitzero"`
	Pool     string          `json:"pool,omitempty"`
	Text     string          `json:"text"` // one line
}

// EventFilter says which events are asked for. The zero value is all that are
// kept.
type EventFilter struct {
	After    uint64    // only those of a higher Seq
	Since    time.Time // only those of this time or later
	Volume   string    // only those of the volume with this ID or name
	Severity Severity  // only those that matter at least so much
}

func (f *EventFilter) match(e *Event) bool {
	return e.Seq > f.After && !e.At.Before(f.Since) &&
		(f.Volume == "" || f.Volume == e.Name || f.Volume == string(e.Volume)) &&
		(f.Severity == "" || e.Severity.rank() >= f.Severity.rank())
}

// Events returns the events that match and are still kept, in the order of
// their Seq. The last 4,096 are kept, over restarts as well; of those of the
// last moments before a power cut some may be missing.
func (a *Array) Events(f EventFilter) []Event { return a.events.list(f) }

// Note records an event that a part of the data plane wants to have kept. Seq,
// At and, if it is empty, Severity are filled in.
func (a *Array) Note(e Event) { a.emit(e) }

// event reports something about the volume v, which may be nil.
func (a *Array) event(kind EventKind, v *volume, mirror lun.Identity, format string, args ...any) {
	e := Event{Kind: kind, Mirror: mirror, Text: fmt.Sprintf(format, args...)}
	if v != nil {
		e.Volume, e.Name = driver.VolumeID(v.id.String()), v.name
	}
	a.emit(e)
}

func (a *Array) poolEvent(kind EventKind, pool, format string, args ...any) {
	a.emit(Event{Kind: kind, Pool: pool, Text: fmt.Sprintf(format, args...)})
}

func (a *Array) emit(e Event) {
	e.At = a.o.Now().UTC()
	if e.Severity == "" {
		e.Severity = SeverityOf(e.Kind)
	}
	log := a.o.Logger.With("event", string(e.Kind))
	if e.Name != "" {
		log = log.With("volume", e.Name)
	}
	switch e.Severity {
	case Info:
		log.Info(e.Text)
	case Error:
		log.Error(e.Text)
	default:
		log.Warn(e.Text)
	}
	a.events.put(e)
}

// eventQueue numbers events, keeps the last ones, and hands them to the log on
// disk and to a callback, one at a time, without ever making the array wait.
type eventQueue struct {
	fn  func(Event)
	log *eventLog // nil: they are not kept on disk

	mu     sync.Mutex
	kept   []Event // the last ones, oldest first
	queue  []Event // not yet handed over
	seq    uint64
	held   int // instants of splits under way
	work   sync.Cond
	closed bool
	done   chan struct{}
}

func (q *eventQueue) init(fn func(Event)) {
	q.fn = fn
	q.work.L = &q.mu
	q.done = make(chan struct{})
	go q.run()
}

// restore has further events follow those that the log on disk has. It is
// called before the first event.
func (q *eventQueue) restore(log *eventLog, before []Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.log, q.kept = log, before
	if n := len(before); n > 0 {
		q.seq = before[n-1].Seq
	}
}

func (q *eventQueue) run() {
	defer close(q.done)
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.queue) == 0 || q.held > 0 {
			if q.closed && len(q.queue) == 0 {
				return
			}
			q.work.Wait()
		}
		batch := q.queue
		q.queue = nil
		q.mu.Unlock()
		if q.log != nil {
			q.log.append(batch)
		}
		for _, e := range batch {
			if q.fn != nil {
				q.fn(e)
			}
		}
		q.mu.Lock()
	}
}

func (q *eventQueue) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.seq++
	e.Seq = q.seq
	q.kept = append(q.kept, e)
	if len(q.kept) >= 2*keptEvents {
		q.kept = append([]Event(nil), q.kept[len(q.kept)-keptEvents:]...)
	}
	if len(q.queue) < keptEvents { // whoever is so slow finds the last ones in the list
		q.queue = append(q.queue, e)
	}
	q.work.Signal()
}

func (q *eventQueue) list(f EventFilter) []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := []Event{}
	for i := max(0, len(q.kept)-keptEvents); i < len(q.kept); i++ {
		if f.match(&q.kept[i]) {
			out = append(out, q.kept[i])
		}
	}
	return out
}

// hold keeps events from the disk until the matching unhold, so that a split
// does not compete with them for it.
func (q *eventQueue) hold() {
	q.mu.Lock()
	q.held++
	q.mu.Unlock()
}

func (q *eventQueue) unhold() {
	q.mu.Lock()
	q.held--
	q.work.Signal()
	q.mu.Unlock()
}

// close returns when all events were handed over.
func (q *eventQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.work.Signal()
	q.mu.Unlock()
	<-q.done
	if q.log != nil {
		q.log.close()
	}
}
