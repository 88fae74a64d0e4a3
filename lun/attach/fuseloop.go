package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/cleave-san/cleave/lun/fuse"
)

// fuseLoop is a FUSE file with a loop device on it. The file is
// Run/ID.disk, so the loop device's own record of its backing file names the
// attachment.
type fuseLoop struct{ h *Host }

// helperPatience is for how long a helper may take to make stable what it was
// given, once nobody can give it more.
const helperPatience = 20 * time.Second

func (m *fuseLoop) file(rec *record) string { return m.h.runPath(rec.ID, ".disk") }

func (m *fuseLoop) attach(ctx context.Context, rec *record, r Request) error {
	path := m.file(rec)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	said, err := m.h.launch(ctx, rec, spec{Open: r.Open, Writable: r.Writable, Mount: path})
	if err != nil {
		return err
	}
	// Not by the helper: its own thread would wait for its own answer, and a
	// kill could not end it.
	rec.Device, err = loopAttach(path, said.Size, said.Block, !r.Writable)
	return err
}

func (m *fuseLoop) keep(rec *record) error { return rec.keep() }

func (m *fuseLoop) device(rec *record) (string, error) { return loopOn(m.file(rec)) }

func (m *fuseLoop) alive(rec *record) bool { return !dying(rec.Helper) }

func (m *fuseLoop) undo(ctx context.Context, rec *record) error {
	path := m.file(rec)
	if err := loopDetach(ctx, path); err != nil {
		return err
	}
	if err := fuse.Unmount(path); err != nil {
		return err
	}
	if err := m.h.endHelper(ctx, rec, helperPatience); err != nil {
		return err
	}
	// A helper that was only beginning may have mounted since.
	if err := fuse.Unmount(path); err != nil {
		return err
	}
	if left, err := fuse.Mounted(path); err != nil || left {
		return errors.Join(err, fmt.Errorf("%s is still mounted: %w", path, ErrBusy))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
