package dataplane

import (
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
)

// maxEvents is how many events are kept for those who ask later.
const maxEvents = 1024

// events are the last things that happened without having been asked for.
type events struct {
	mu   sync.Mutex
	seq  uint64
	list []remote.Event
}

func (e *events) add(kind, volume, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	e.list = append(e.list, remote.Event{Seq: e.seq, At: time.Now().UTC(), Kind: kind, Volume: volume, Text: text})
	if len(e.list) > 2*maxEvents {
		e.list = slices.Clone(e.list[len(e.list)-maxEvents:])
	}
}

func (e *events) array(ev embedded.Event) { e.add(string(ev.Kind), ev.Name, ev.Text) }

func (e *events) after(seq uint64) []remote.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	i, _ := slices.BinarySearchFunc(e.list, seq+1, func(ev remote.Event, s uint64) int {
		return int(int64(ev.Seq) - int64(s))
	})
	return append([]remote.Event{}, e.list[i:]...)
}
