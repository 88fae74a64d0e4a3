package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cleave-san/cleave/lun/process"
)

// Detach takes an attachment away, by its device, its source or its ID. While
// the device is in use it is ErrBusy, and nothing has changed; the same where it
// can't be flushed, unless its helper is dead: then there is nobody to flush to.
// ErrNotAttached means that nothing is left of it.
func (h *Host) Detach(ctx context.Context, what string) (Attachment, error) {
	rec, err := h.find(what)
	if err != nil {
		return Attachment{}, fmt.Errorf("detaching %s: %w", what, err)
	}
	if err := rec.tryLock(); errors.Is(err, fs.ErrNotExist) {
		return rec.Attachment, nil // by somebody else, just now
	} else if err != nil {
		return rec.Attachment, fmt.Errorf("detaching %s: %w", what, err)
	}
	defer rec.unlock()
	// What it says now that nobody else works on it.
	lock := rec.lock
	now, err := h.load(rec.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return rec.Attachment, nil
	}
	if err != nil {
		return rec.Attachment, fmt.Errorf("detaching %s: %w", what, err)
	}
	*rec = *now
	rec.lock = lock
	if err := h.quiesce(ctx, rec); err != nil {
		return rec.Attachment, fmt.Errorf("detaching %s: %w", what, err)
	}
	if err := h.undo(ctx, rec); err != nil {
		return rec.Attachment, fmt.Errorf("detaching %s: %w", what, err)
	}
	return rec.Attachment, nil
}

// undo takes all of an attachment away, its record last.
func (h *Host) undo(ctx context.Context, rec *record) error {
	if rec.Method != "" {
		m, err := h.method(rec.Method)
		if err != nil {
			return err
		}
		if err := m.undo(ctx, rec); err != nil {
			return fmt.Errorf("taking it away: %w", err)
		}
	}
	if err := os.Remove(h.runPath(rec.ID, ".log")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return rec.remove()
}

// quiesce finds nobody using the device, and flushes it.
func (h *Host) quiesce(ctx context.Context, rec *record) error {
	if rec.Method == "" {
		return nil
	}
	m, err := h.method(rec.Method)
	if err != nil {
		return err
	}
	dev, err := m.device(rec)
	if err != nil || dev == "" {
		return err
	}
	f, err := claim(ctx, dev)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		if m.alive(rec) {
			return fmt.Errorf("flushing %s, which stays attached: %w", dev, err)
		}
		h.o.Log.Warn("what was not flushed before the helper died is lost", "device", dev, "error", err)
	}
	return nil
}

// find looks an attachment up.
func (h *Host) find(what string) (*record, error) {
	all, err := h.records()
	if err != nil {
		return nil, err
	}
	boot, err := process.BootID()
	if err != nil {
		return nil, err
	}
	dev, err := filepath.EvalSymlinks(what)
	if err != nil {
		dev = what
	}
	var found []*record
	for _, r := range all {
		switch {
		case r.ID == what:
			return r, nil
		// A name of a device means nothing after a reboot.
		case r.Boot == boot && r.Device != "" && resolved(r.Device) == dev, r.Source == what, r.Source == absolute(what):
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return nil, ErrNotAttached
	case 1:
		return found[0], nil
	}
	var devices []string
	for _, r := range found {
		devices = append(devices, orID(r.Attachment))
	}
	return nil, fmt.Errorf("it is attached %d times, name one of %s: %w", len(found), strings.Join(devices, ", "), ErrAmbiguous)
}

// ErrAmbiguous says that a source is attached more than once.
var ErrAmbiguous = errors.New("more than one is meant")

func orID(a Attachment) string {
	if a.Device != "" {
		return a.Device
	}
	return a.ID
}

func resolved(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return path
}

func absolute(path string) string {
	if strings.Contains(path, "://") {
		return path
	}
	if p, err := filepath.Abs(path); err == nil {
		return p
	}
	return path
}

// List says which attachments there are, and how they do.
func (h *Host) List() ([]Attachment, error) {
	all, err := h.records()
	if err != nil {
		return nil, fmt.Errorf("list of attachments: %w", err)
	}
	boot, err := process.BootID()
	if err != nil {
		return nil, err
	}
	var out []Attachment
	for _, r := range all {
		a := r.Attachment
		a.State = h.state(r, boot)
		out = append(out, a)
	}
	return out, nil
}

func (h *Host) state(r *record, boot string) State {
	if err := r.tryLock(); errors.Is(err, ErrBusy) {
		return Attaching
	}
	r.unlock()
	m, err := h.method(r.Method)
	switch {
	case r.Boot != boot && r.Boot != "":
		return Gone
	case !r.Complete || err != nil:
		return Incomplete
	case !m.alive(r):
		return Dead
	}
	dev, err := m.device(r)
	if err != nil || dev == "" {
		return Incomplete
	}
	return Attached
}
