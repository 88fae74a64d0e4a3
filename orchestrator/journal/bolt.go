package journal

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/cleave-san/cleave/orchestrator"
)

// Bolt is a Journal in one file, for the control plane of one host. bbolt
// commits with an fsync, and locks the file against a second process.
type Bolt struct{ db *bolt.DB }

var bucket = []byte("sets")

// OpenBolt opens the journal at path, making it if it is not there. A journal
// that another process has open is orchestrator.ErrBusy.
func OpenBolt(path string) (*Bolt, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("journal %s: %w: another control plane has it open", path, orchestrator.ErrBusy)
	case err != nil:
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", path, err), db.Close())
	}
	return &Bolt{db: db}, nil
}

// Put implements Journal.
func (j *Bolt) Put(r Record) error {
	b, err := encode(r)
	if err != nil {
		return err
	}
	err = j.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucket).Put([]byte(r.Set.ID), b)
	})
	return closed(err)
}

// Get implements Journal.
func (j *Bolt) Get(id orchestrator.SetID) (Record, error) {
	var r Record
	err := j.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucket).Get([]byte(id))
		if b == nil {
			return notFound(id)
		}
		var err error
		r, err = decode(string(id), b)
		return err
	})
	return r, closed(err)
}

// All implements Journal.
func (j *Bolt) All() ([]Record, error) {
	var rs []Record
	err := j.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
			r, err := decode(string(k), v)
			rs = append(rs, r)
			return err
		})
	})
	sortByAge(rs)
	return rs, closed(err)
}

// Close implements Journal.
func (j *Bolt) Close() error { return j.db.Close() }

func closed(err error) error {
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

func notFound(id orchestrator.SetID) error {
	return fmt.Errorf("snapshot set %q: %w", id, orchestrator.ErrNotFound)
}

func sortByAge(rs []Record) {
	slices.SortFunc(rs, func(a, b Record) int {
		return cmp.Or(a.Set.Created.Compare(b.Set.Created), cmp.Compare(a.Set.ID, b.Set.ID))
	})
}
