package rbd

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

// Open implements driver.Opener. The snapshot can't be deleted while it is open
// here.
func (d *Driver) Open(ctx context.Context, id driver.SnapshotID) (lun.Device, error) {
	s, err := parseSnap(id)
	if err != nil {
		return nil, err
	}
	unlock, err := d.lock(ctx)
	if err != nil {
		return nil, err
	}
	i, name, err := d.readable(ctx, s)
	if err == nil {
		d.opened(id, 1)
	}
	unlock()
	if err != nil {
		return nil, err
	}
	closed := func() { d.opened(id, -1) }
	x, err := d.serve(ctx, i, name, true)
	if err != nil {
		closed()
		return nil, err
	}
	x.closed = closed
	return x, nil
}

// OpenImage opens an image as production does, for reading and writing: what a
// provider does that gives its images out by their names.
func (d *Driver) OpenImage(ctx context.Context, v driver.VolumeID) (lun.Device, error) {
	i, _, err := d.volume(ctx, v)
	if err != nil {
		return nil, err
	}
	return d.serve(ctx, i, "", false)
}

// device is an image that a process of its own serves.
type device struct {
	*nbd.Client
	closed func() // nil: nothing to do
	once   sync.Once
	end    func()
}

// Close ends the process.
func (d *device) Close() error {
	d.once.Do(func() {
		_ = d.Client.Close()
		d.end()
		if d.closed != nil {
			d.closed()
		}
	})
	return nil
}

const export = "image"

// startLimit bounds how long qemu-storage-daemon may take to be there.
const startLimit = time.Minute

// serve starts qemu-storage-daemon on an image or one of its snapshots. The
// kernel ends it with us, whatever ends us.
func (d *Driver) serve(ctx context.Context, i image, snapshot string, readOnly bool) (*device, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	dir, err := os.MkdirTemp("", "cleave-rbd-") // for this user alone
	if err != nil {
		return nil, driver.Errorf(driver.Unreachable, "a directory for the socket of %s: %w", i, err)
	}
	socket := filepath.Join(dir, "nbd")
	block := map[string]any{"driver": "rbd", "node-name": "node", "pool": i.pool, "image": i.name, "read-only": readOnly, "cache": map[string]bool{"direct": true}, "discard": "unmap"}
	for key, value := range map[string]string{"namespace": i.namespace, "snapshot": snapshot, "conf": d.o.Conf, "user": d.o.User} {
		if value != "" {
			block[key] = value
		}
	}
	serve := map[string]any{"addr": map[string]string{"type": "unix", "path": socket}}
	out := map[string]any{"type": "nbd", "id": export, "node-name": "node", "name": export, "writable": !readOnly}
	cmd := exec.Command(d.o.Daemon, "--blockdev", text(block), "--nbd-server", text(serve), "--export", text(out))
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var says tail
	cmd.Stderr = &says
	started, gone := make(chan error, 1), make(chan struct{})
	go func() {
		// The kernel's signal goes with the thread that forked (prctl(2),
		// PR_SET_PDEATHSIG): it stays and waits.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // ended by us, or says has why
			close(gone)
		}
	}()
	if err := <-started; err != nil {
		_ = os.RemoveAll(dir)
		return nil, driver.Errorf(driver.Unreachable, "serving %s: %w", i, err)
	}
	end := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-gone
		}
		_ = os.RemoveAll(dir)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Export: export})
		if err == nil {
			return &device{Client: c, end: end}, nil
		}
		select {
		case <-tick.C:
		case <-gone:
			end()
			return nil, driver.Errorf(driver.Unreachable, "serving %s: %s ended: %s%w", i, filepath.Base(d.o.Daemon), said(says), err)
		case <-ctx.Done():
			end()
			return nil, driver.Errorf(driver.Unreachable, "serving %s: %w", i, context.Cause(ctx))
		}
	}
}

// text is what a program takes as an option in JSON. Its values always encode.
func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
