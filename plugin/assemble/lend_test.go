package assemble

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/cinder"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/process"
	"github.com/cleave-san/cleave/orchestrator/engine"
)

// TestLentView: a view of what is reached by iSCSI, with CHAP, outlives the device
// it was started with, and takes the process that reads for it along when it ends.
func TestLentView(t *testing.T) {
	const user, secret = "reader", "reader-secret-0123"
	s := newArrayScene(t)
	contents := luntest.Image(t, "lvm-o1-thick-4k")
	_, want := guestDisk(t)
	p := s.fill("vda", contents)
	s.ok(s.client.SetInitiator(t.Context(), remote.Initiator{IQN: backup, User: user, Secret: secret}))
	p, err := s.client.ExposeVolume(t.Context(), s.disks[0].id, []string{production, backup}, false)
	s.ok(err)
	l := loan{
		Array: ArrayConfig{Type: typeCinder, Initiator: backup},
		Connection: cinder.Connection{
			Protocol: "iscsi", Portals: p.Portals, Targets: []string{p.IQN}, LUN: p.LUN,
			CHAP: &driver.CHAP{User: user, Secret: secret},
		},
	}
	d, err := lend(t.Context(), l)
	s.ok(err)
	state := filepath.Join(s.dir, "st")
	v, err := newViews(state, RecoveryConfig{Overlay: filepath.Join(state, "views"), OverlayLimit: 1 << 30, Memory: 1 << 30})
	s.ok(err)
	const name = "set/vm"
	view, err := v.Start(t.Context(), name, engine.Disks{Devices: []lun.Device{d}}, []engine.InGuest{want}, "")
	s.ok(err)
	s.ok(d.(interface{ Close() error }).Close())
	lenders := lendersOf(t, v, name)
	if len(lenders) != 1 {
		t.Fatalf("%d processes read for the view", len(lenders))
	}
	c, err := nbd.Dial(t.Context(), "unix", view.Socket, nbd.ClientOptions{Export: view.Exports[0]})
	s.ok(err)
	b := make([]byte, 64<<10)
	_, err = c.ReadAt(b, 1<<20)
	s.ok(err)
	s.ok(c.Close())
	if !bytes.Equal(b[:512], contents[1<<20:1<<20+512]) {
		t.Error("the view shows something else")
	}
	s.ok(v.Stop(t.Context(), name))
	for _, l := range lenders {
		if alive, err := l.Alive(); alive || err != nil {
			t.Errorf("process %d still reads, %v", l.PID, err)
		}
	}
}

// TestLendRefused: what can't be opened is said in a line without the secret, and
// leaves no process.
func TestLendRefused(t *testing.T) {
	l := lent{luntest.ReadOnly(make([]byte, 1<<20)), loan{
		Array:      ArrayConfig{Type: typeCinder, Initiator: backup},
		Connection: cinder.Connection{Protocol: "iscsi", Portals: []string{"127.0.0.1:1"}, Targets: []string{"iqn.2026-01.test:x"}, CHAP: &driver.CHAP{User: "u", Secret: "very-secret-0123"}},
	}}
	state := t.TempDir()
	v, err := newViews(state, RecoveryConfig{Overlay: filepath.Join(state, "views")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Start(context.Background(), "x", engine.Disks{Devices: []lun.Device{l}}, nil, "")
	if err == nil || strings.Contains(err.Error(), "very-secret") || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("%v", err)
	}
}

func lendersOf(t *testing.T, v *views, name string) []process.Process {
	t.Helper()
	b, err := os.ReadFile(v.path(name, ".json"))
	if err != nil {
		t.Fatal(err)
	}
	var h handle
	if err := json.Unmarshal(b, &h); err != nil {
		t.Fatal(err)
	}
	return h.Worker.Lenders
}
