// Package localdev opens snapshots that an array of this very host shows as block
// devices or files, for providers whose driver.Opener and driver.Rewriter need no
// more than a path.
//
// What it promises. Readers share a snapshot; who writes to it is alone: locks of
// flock(2) on the open file keep the two apart, over processes, and end with the
// process that holds them, or with the last descriptor that was handed on. Nothing
// is opened that is neither a file nor a block device, and nothing waits for one
// that does not answer an open.
//
// udev probes block devices under a shared lock of the same kind and leaves those
// that are being rewritten alone; such a moment is waited for.
package localdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// moment is how long somebody who only looks is waited for, and how often.
const (
	moment = time.Second
	poll   = 20 * time.Millisecond
)

// Device is a snapshot that is open for reading. Its methods may be called at
// once; those of a lun.Device that change it return lun.ErrReadOnly.
type Device struct {
	f    *os.File
	size int64
}

// Open opens a path for reading. Kind Busy says that it is being rewritten.
func Open(path string) (*Device, error) {
	f, size, err := openFile(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	if err := lock(f, unix.LOCK_SH); err != nil {
		return nil, errors.Join(busy(err, "%s is being written to by somebody", path), f.Close())
	}
	return &Device{f, size}, nil
}

// openFile opens what is a file or a block device, and measures it.
func openFile(path string, mode int) (*os.File, int64, error) {
	if !filepath.IsAbs(path) {
		return nil, 0, fmt.Errorf("path %.200q is not absolute", path)
	}
	// Without waiting: a pipe has no writer, and is refused below.
	f, err := os.OpenFile(path, mode|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() && fi.Mode().Type() != os.ModeDevice {
		err = fmt.Errorf("%s is neither a file nor a block device", path)
	}
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, size, nil
}

// lock tries to take a lock, or to turn one into another.
func lock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func busy(err error, format string, args ...any) error {
	if errors.Is(err, unix.EWOULDBLOCK) {
		return driver.Errorf(driver.Busy, format, args...)
	}
	return err
}

// ReadAt implements lun.Device.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	return d.f.ReadAt(p, off)
}

// WriteAt implements lun.Device.
func (d *Device) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

// Size implements lun.Device.
func (d *Device) Size() int64 { return d.size }

// Sync implements lun.Device.
func (d *Device) Sync() error { return nil }

// Close implements io.Closer.
func (d *Device) Close() error { return d.f.Close() }

// File implements lun.Filer.
func (d *Device) File() *os.File { return d.f }

// Hooks are a provider's part in a rewrite. Both may be nil.
type Hooks struct {
	// Before is called once, before the first write; after its error nothing is
	// written, and it is called again for the next.
	Before func() error
	// After is called by Close, once, after what was written is stable and before
	// others may open it, with the regions that were written, in order. Close
	// returns its error.
	After func([]lun.Extent) error
}

// Writer is a snapshot that is open for writing, alone. Its methods may be called
// at once.
type Writer struct {
	f     *os.File
	size  int64
	hooks Hooks

	mu      sync.Mutex
	begun   bool
	closed  bool
	written regions
}

// Rewrite opens a path for writing, as driver.Rewriter says: kind Busy while it is
// open for reading; who has it open for writing is waited for until ctx ends.
func Rewrite(ctx context.Context, path string, h Hooks) (*Writer, error) {
	f, size, err := openFile(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if err := alone(ctx, f, path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Writer{f: f, size: size, hooks: h}, nil
}

// alone gets the lock of one who is alone with the file.
func alone(ctx context.Context, f *os.File, path string) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	read := time.Now().Add(moment) // by then who only looked is gone
	for {
		err := lock(f, unix.LOCK_EX)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		// Readers share it with us, a writer does not.
		switch err := lock(f, unix.LOCK_SH); {
		case err == nil:
			if err := lock(f, unix.LOCK_UN); err != nil {
				return err
			}
			if time.Now().After(read) {
				return driver.Errorf(driver.Busy, "%s is open for reading", path)
			}
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return driver.Errorf(driver.Busy, "%s is in use by somebody else: %w", path, ctx.Err())
		}
	}
}

// begin is the moment before a write.
func (w *Writer) begin() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return lun.ErrClosed
	}
	if !w.begun && w.hooks.Before != nil {
		if err := w.hooks.Before(); err != nil {
			return err
		}
	}
	w.begun = true
	return nil
}

// ReadAt implements lun.Device.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), w.size); err != nil {
		return 0, err
	}
	return w.f.ReadAt(p, off)
}

// WriteAt implements lun.Device.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), w.size); err != nil {
		return 0, err
	}
	if err := w.begin(); err != nil {
		return 0, err
	}
	w.mu.Lock()
	w.written.add(off, int64(len(p))) // before: a write that failed may be there in part
	w.mu.Unlock()
	return w.f.WriteAt(p, off)
}

// Size implements lun.Device.
func (w *Writer) Size() int64 { return w.size }

// Sync implements lun.Device.
func (w *Writer) Sync() error { return w.f.Sync() }

// Close implements io.Closer. Nobody else gets at the snapshot before it returns.
func (w *Writer) Close() error {
	w.mu.Lock()
	closed := w.closed
	w.closed = true
	list := w.written.list
	w.mu.Unlock()
	if closed {
		return nil
	}
	err := w.f.Sync()
	if err == nil && len(list) > 0 && w.hooks.After != nil {
		err = w.hooks.After(list)
	}
	return errors.Join(err, w.f.Close())
}

var (
	_ lun.Device = (*Device)(nil)
	_ lun.Filer  = (*Device)(nil)
	_ lun.Device = (*Writer)(nil)
)
