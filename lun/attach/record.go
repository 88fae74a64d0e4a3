package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/process"
)

// record is what is kept of an attachment: a directory of its own below State,
// named by the ID, that whoever works on the attachment has locked.
type record struct {
	Attachment
	Boot     string          `json:"boot"`
	Helper   process.Process `json:"helper,omitzero"`
	LUN      *LUN            `json:"lun,omitempty"`
	Complete bool            `json:"complete"`

	dir  string
	lock *os.File
	link *lifeline // to the helper, until keep
}

const recordFile = "record.json"

func (h *Host) newRecord(r Request) (*record, error) {
	boot, err := process.BootID()
	if err != nil {
		return nil, err
	}
	rec := &record{
		Attachment: Attachment{ID: newID(), Source: r.Source, LUNs: r.LUNs, Method: r.Method, Writable: r.Writable, Since: time.Now().UTC().Truncate(time.Second)},
		Boot:       boot,
	}
	if r.Method == ISCSI {
		l := *r.LUN
		l.forget()
		rec.LUN = &l
	}
	rec.dir = filepath.Join(h.o.State, rec.ID)
	if err := os.Mkdir(rec.dir, 0o700); err != nil {
		return nil, err
	}
	if err := rec.tryLock(); err != nil {
		return nil, err
	}
	if err := rec.save(); err != nil {
		return nil, errors.Join(err, rec.remove())
	}
	return rec, nil
}

// tryLock takes the record for this process, or is ErrBusy.
func (r *record) tryLock() error {
	f, err := os.Open(r.dir)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("another process is attaching or detaching it: %w", ErrBusy)
		}
		return err
	}
	r.lock = f
	return nil
}

func (r *record) unlock() {
	if r.lock != nil {
		r.lock.Close()
		r.lock = nil
	}
}

// save is on the disk when it returns.
func (r *record) save() error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record of an attachment: %w", err)
	}
	draft := filepath.Join(r.dir, recordFile+".new")
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("record of an attachment: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(draft, filepath.Join(r.dir, recordFile))
	}
	if err == nil {
		err = syncDir(r.dir)
	}
	if err == nil {
		err = syncDir(filepath.Dir(r.dir))
	}
	if err != nil {
		return fmt.Errorf("record of an attachment: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// remove forgets the attachment.
func (r *record) remove() error {
	err := os.RemoveAll(r.dir)
	r.unlock()
	return err
}

// load reads a record; one whose directory was made and nothing in it yet is
// the record of an attachment that has not begun.
func (h *Host) load(id string) (*record, error) {
	r := &record{dir: filepath.Join(h.o.State, id)}
	b, err := os.ReadFile(filepath.Join(r.dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(r.dir); err != nil {
			return nil, err
		}
		r.ID = id
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("record of attachment %s: %w", id, err)
	}
	if r.ID != id {
		return nil, fmt.Errorf("record of attachment %s says that it is of %.20q", id, r.ID)
	}
	return r, nil
}

// records are those that there are, oldest first.
func (h *Host) records() ([]*record, error) {
	entries, err := os.ReadDir(h.o.State)
	if err != nil {
		return nil, err
	}
	var all []*record
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		r, err := h.load(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // detached in between
		}
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}
