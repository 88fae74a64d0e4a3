//go:build lab

package cinderarray

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/cinder"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/integration/cinderarray/lvmtgt"
	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/lun"
)

const reader = "iqn.2026-01.org.example:reader"

// exposed is the driver as callers hold it: its LUNs are read here, by iSCSI, and
// exposed to others.
type exposed struct {
	driver.Driver
	driver.Opener
	driver.Exposer
	driver.Describer
	driver.Checker
}

// TestOnLVM has data on thin logical volumes that tgtd exports, each with a CHAP secret
// of its own.
func TestOnLVM(t *testing.T) {
	s := lvmtgt.Start(t, "thin")
	var vs []arraytest.Volume
	for range 2 {
		id := s.Volume(lvmtgt.Backend)
		vs = append(vs, arraytest.Volume{ID: driver.VolumeID(id), Device: attached(t, s, id)})
	}
	arraytest.Run(t, func(t *testing.T) *arraytest.Lab {
		l := &arraytest.Lab{Volumes: vs, Disk: driver.Disk{Serial: string(vs[0].ID)}, Initiator: "iqn.1993-08.org.debian:01:backup"}
		l.Restart = func(t *testing.T) {
			d := openOnLVM(t, s)
			l.Driver = exposed{d, d, d, d, d}
		}
		l.Restart(t)
		return l
	})
	if volumes, targets := s.Left(t); len(volumes) != len(vs) || len(targets) != len(vs) {
		t.Errorf("left on the storage: %q, %q", volumes, targets)
	}
	if t.Failed() {
		t.Log(s.Log())
	}
}

// TestOnThickLVM has a split of a volume that has no clones: what is read of it is a
// copy, which Cinder makes.
func TestOnThickLVM(t *testing.T) {
	s := lvmtgt.Start(t, "default")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.Log())
		}
	})
	id := s.Volume(lvmtgt.Backend)
	production, d := attached(t, s, id), openOnLVM(t, s)
	write := func(b byte) {
		t.Helper()
		p := bytes.Repeat([]byte{b}, 1<<20)
		for _, off := range []int64{0, production.Size() - 1<<20} {
			if _, err := production.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := production.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	write('a')
	split, err := d.Split(t.Context(), "thick", driver.VolumeID(id))
	if err != nil {
		t.Fatal(err)
	}
	write('b')
	dev, err := d.Open(t.Context(), split.ID)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<20)
	for _, off := range []int64{0, dev.Size() - 1<<20} {
		if _, err := dev.ReadAt(got, off); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{'a'}, len(got))) {
			t.Errorf("the split has %.8q at %d, %v", got, off, err)
		}
	}
	if err := dev.(io.Closer).Close(); err != nil {
		t.Error(err)
	}
	if err := d.Delete(t.Context(), split.ID); err != nil {
		t.Error(err)
	}
	if volumes, targets := s.Left(t); len(volumes) != 1 || len(targets) != 1 {
		t.Errorf("left on the storage: %q, %q", volumes, targets)
	}
}

func openOnLVM(t *testing.T, s *lvmtgt.Storage) *cinder.Driver {
	t.Helper()
	d, err := cinder.New(cinder.Options{
		Endpoint: s.Endpoint, Project: s.Project, Limit: 5 * time.Minute, Initiator: reader, Connect: connect,
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// connect reads what Cinder attached to this host.
func connect(ctx context.Context, x cinder.Connection) (lun.Device, error) {
	return initiator.Open(ctx, initiator.Options{
		Portals: x.Portals, Target: iscsi.Name(x.Targets[0]), LUN: int(x.LUN), Initiator: reader,
		CHAP: &mask.Credentials{User: x.CHAP.User, Secret: []byte(x.CHAP.Secret)},
	})
}

// attached is a volume as the hypervisor has it.
func attached(t *testing.T, s *lvmtgt.Storage, id string) lun.Device {
	t.Helper()
	l := s.Attach(id, "iqn.2026-01.org.example:hypervisor")
	wantCHAP(t, l)
	d, err := login(t, l, &mask.Credentials{User: l.User, Secret: []byte(l.Secret)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// wantCHAP fails if a target lets somebody in who has not the volume's own secret:
// what is read with it would say nothing about that.
func wantCHAP(t *testing.T, l lab.LUN) {
	t.Helper()
	for who, c := range map[string]*mask.Credentials{
		"nobody":       nil,
		"a guesser":    {User: l.User, Secret: []byte("not-the-secret-1")},
		"another user": {User: "somebody", Secret: []byte(l.Secret)},
	} {
		d, err := login(t, l, c)
		if !errors.Is(err, initiator.ErrAuth) {
			t.Errorf("%s at %s: %v, want %v", who, l.Target, err, initiator.ErrAuth)
		}
		if err == nil {
			_ = d.Close()
		}
	}
}

func login(t *testing.T, l lab.LUN, c *mask.Credentials) (*initiator.Disk, error) {
	return initiator.Open(t.Context(), initiator.Options{
		Portals: []string{l.Portal}, Target: iscsi.Name(l.Target), LUN: l.Number, Initiator: iscsi.Name(l.Initiator), CHAP: c,
	})
}
