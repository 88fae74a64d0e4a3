package journal_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

func record(id orchestrator.SetID, age time.Duration) journal.Record {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC).Add(-age)
	return journal.Record{
		Set:      orchestrator.Set{Version: 1, ID: id, State: orchestrator.StatePrepared, Created: at},
		Holdings: []journal.Holding{{Kind: journal.ArraySplit, Array: "a", Tag: "t"}},
		Events:   []orchestrator.Event{{Set: id, At: at, Text: "planned"}},
	}
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	for name, open := range map[string]func() journal.Journal{
		"memory": func() journal.Journal { return journal.NewMemory() },
		"bolt": func() journal.Journal {
			j, err := journal.OpenBolt(path)
			if err != nil {
				t.Fatal(err)
			}
			return j
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := open()
			defer j.Close()
			if _, err := j.Get("set-1"); !errors.Is(err, orchestrator.ErrNotFound) {
				t.Fatalf("Get of nothing: %v, want ErrNotFound", err)
			}
			if err := j.Put(journal.Record{}); err == nil {
				t.Fatal("a record without an ID was taken")
			}
			young, old := record("set-1", 0), record("set-2", time.Hour)
			for _, r := range []journal.Record{young, old, young} {
				if err := j.Put(r); err != nil {
					t.Fatal(err)
				}
			}
			got, err := j.Get("set-1")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(young, got); d != "" {
				t.Errorf("Get after Put (-put +got):\n%s", d)
			}
			all, err := j.All()
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([]journal.Record{old, young}, all); d != "" {
				t.Errorf("All is not oldest first (-want +got):\n%s", d)
			}
		})
	}
}

func TestBoltIsLockedAndDurable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j, err := journal.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Put(record("set-1", 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.OpenBolt(path); !errors.Is(err, orchestrator.ErrBusy) {
		t.Errorf("second opening: %v, want ErrBusy", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Put(record("set-2", 0)); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Put after Close: %v, want ErrClosed", err)
	}
	j, err = journal.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := j.Get("set-1"); err != nil {
		t.Errorf("after reopening: %v", err)
	}
}

func TestBoltNamesTheDamagedRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("sets"))
		if err != nil {
			return err
		}
		return errors.Join(b.Put([]byte("set-new"), []byte(`{"version":99}`)), b.Put([]byte("set-torn"), []byte(`{"versi`)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	j, err := journal.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for id, want := range map[orchestrator.SetID]string{
		"set-new":  `journal: record "set-new" has version 99; this program reads 1`,
		"set-torn": `journal: record "set-torn" is damaged: unexpected end of JSON input`,
	} {
		if _, err := j.Get(id); err == nil || err.Error() != want {
			t.Errorf("Get(%s): %v\nwant %s", id, err, want)
		}
	}
}
