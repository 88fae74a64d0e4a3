package journal

import (
	"sync"

	"github.com/cleave-san/cleave/orchestrator"
)

// Memory is a Journal that lives as long as the process: for tests and dry
// runs. It stores encoded records, so that what a caller changes afterwards
// does not change it.
type Memory struct {
	mu   sync.Mutex
	sets map[orchestrator.SetID][]byte
}

// NewMemory returns an empty journal.
func NewMemory() *Memory { return &Memory{sets: map[orchestrator.SetID][]byte{}} }

// Put implements Journal.
func (j *Memory) Put(r Record) error {
	b, err := encode(r)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sets[r.Set.ID] = b
	return nil
}

// Get implements Journal.
func (j *Memory) Get(id orchestrator.SetID) (Record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b, ok := j.sets[id]
	if !ok {
		return Record{}, notFound(id)
	}
	return decode(string(id), b)
}

// All implements Journal.
func (j *Memory) All() ([]Record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	rs := make([]Record, 0, len(j.sets))
	for id, b := range j.sets {
		r, err := decode(string(id), b)
		if err != nil {
			return nil, err
		}
		rs = append(rs, r)
	}
	sortByAge(rs)
	return rs, nil
}

// Close implements Journal.
func (j *Memory) Close() error { return nil }
