// Package journal keeps what must survive a crash: each snapshot set's
// document, and what it holds of the world outside.
//
// The rule is write-ahead: a holding is put before the act that creates it, so
// after a crash the journal names at least everything that may exist. Every
// undo therefore copes with a thing that was never made.
//
// Adding a store: implement Journal and pass the tests of this package, which
// run over both stores there are (bbolt for a host, memory for tests).
package journal

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/orchestrator"
)

// Journal is a durable map from set to record. Methods may be called at once.
type Journal interface {
	// Put stores the record; when it returns nil the record survives a power
	// cut. After an error the old or the new record is there, whole.
	Put(r Record) error
	// Get returns the record of a set, or orchestrator.ErrNotFound.
	Get(id orchestrator.SetID) (Record, error)
	// All returns every record, oldest first.
	All() ([]Record, error)
	// Close ends the use of the journal.
	Close() error
}

// Record is all that is known of a set.
type Record struct {
	Set      orchestrator.Set     `json:"set"`
	Holdings []Holding            `json:"holdings,omitempty"` // in the order they were taken
	Events   []orchestrator.Event `json:"events,omitempty"`
}

// Kind says what a holding is, and so how it is given back.
type Kind string

const (
	GuestSnapshot Kind = "guest-snapshot" // in-guest snapshots of VM, which Writer speaks for, under the step's name in Tag
	ArraySplit    Kind = "array-split"    // everything on Array that carries Tag
	View          Kind = "view"           // a worker process; Handle finds it
	PublishedLUN  Kind = "published-lun"  // a view served as a LUN, by Name
	ExposedSplit  Kind = "exposed-split"  // a split served by its array: Array, Name is the snapshot's ID
)

// Holding is one thing outside that the set may have made and must give back.
type Holding struct {
	Kind   Kind            `json:"kind"`
	VM     string          `json:"vm,omitempty"`
	Writer string          `json:"writer,omitempty"`
	Array  string          `json:"array,omitempty"`
	Tag    string          `json:"tag,omitempty"`
	Name   string          `json:"name,omitempty"`
	Handle json.RawMessage `json:"handle,omitempty"`
}

// String is how a holding is named in messages.
func (h Holding) String() string {
	switch h.Kind {
	case GuestSnapshot:
		return fmt.Sprintf("in-guest snapshots %s of VM %q", h.Tag, h.VM)
	case ArraySplit:
		return fmt.Sprintf("splits tagged %s on array %q", h.Tag, h.Array)
	case View:
		return fmt.Sprintf("recovered view of VM %q", h.VM)
	case PublishedLUN:
		return fmt.Sprintf("LUN %q", h.Name)
	case ExposedSplit:
		return fmt.Sprintf("LUN of split %q on array %q", h.Name, h.Array)
	}
	return string(h.Kind)
}

// ErrClosed is returned by a journal that was closed.
var ErrClosed = errors.New("journal is closed")

func encode(r Record) ([]byte, error) {
	if r.Set.ID == "" {
		return nil, errors.New("journal: record without a set ID")
	}
	return json.Marshal(envelope{Version: version, Record: r})
}

// version of records on disk.
const version = 1

type envelope struct {
	Version int `json:"version"`
	Record
}

func decode(id string, b []byte) (Record, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return Record{}, fmt.Errorf("journal: record %q is damaged: %w", id, err)
	}
	if e.Version != version {
		return Record{}, fmt.Errorf("journal: record %q has version %d; this program reads %d", id, e.Version, version)
	}
	return e.Record, nil
}
