package embedded

import (
	"fmt"
	"sync"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// maxQueued bounds events that nobody has taken yet; further ones are only
// logged.
const maxQueued = 1024

// eventQueue hands events to a callback, one at a time, without ever making
// the array wait for it.
type eventQueue struct {
	fn func(Event)

	mu     sync.Mutex
	queue  []Event
	work   sync.Cond
	closed bool
	done   chan struct{}
}

func (q *eventQueue) init(fn func(Event)) {
	q.fn = fn
	q.work.L = &q.mu
	if fn == nil {
		return
	}
	q.done = make(chan struct{})
	go q.run()
}

func (q *eventQueue) run() {
	defer close(q.done)
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.queue) == 0 {
			if q.closed {
				return
			}
			q.work.Wait()
		}
		e := q.queue[0]
		q.queue = q.queue[1:]
		q.mu.Unlock()
		q.fn(e)
		q.mu.Lock()
	}
}

func (q *eventQueue) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fn != nil && !q.closed && len(q.queue) < maxQueued {
		q.queue = append(q.queue, e)
		q.work.Signal()
	}
}

// close returns when all events were handed over.
func (q *eventQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.work.Signal()
	q.mu.Unlock()
	if q.done != nil {
		<-q.done
	}
}

// event reports something about the volume v, which may be nil.
func (a *Array) event(kind EventKind, v *volume, mirror lun.Identity, format string, args ...any) {
	e := Event{At: a.o.Now().UTC(), Kind: kind, Mirror: mirror, Text: fmt.Sprintf(format, args...)}
	log := a.o.Logger.With("event", string(kind))
	if v != nil {
		e.Volume, e.Name = driver.VolumeID(v.id.String()), v.name
		log = log.With("volume", v.name)
	}
	if kind == Recovered || kind == ResyncDone {
		log.Info(e.Text)
	} else {
		log.Warn(e.Text)
	}
	a.events.put(e)
}
