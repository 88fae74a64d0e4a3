package assemble

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/orchestrator/engine"
)

// guestDisk unpacks an image with an in-guest LVM snapshot, and says which.
func guestDisk(t *testing.T) (lun.Device, engine.InGuest) {
	t.Helper()
	d, err := open.File(luntest.File(t, "lvm-o1-thick-4k"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	c, err := open.Probe(t.Context(), open.Source{Name: "disk", Device: d})
	if err != nil {
		t.Fatal(err)
	}
	r, err := recovery.Inspect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range r.Groups {
		for _, v := range g.Volumes {
			for _, s := range v.Snapshots {
				return d, engine.InGuest{Volume: v.UUID, Snapshot: s.UUID}
			}
		}
	}
	t.Fatal("the image has no in-guest snapshot")
	return nil, engine.InGuest{}
}

func TestViewOutlivesItsControlPlane(t *testing.T) {
	disk, want := guestDisk(t)
	state := t.TempDir()
	c := RecoveryConfig{Overlay: filepath.Join(state, "views"), OverlayLimit: 1 << 30, Memory: 1 << 30}
	v, err := newViews(state, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	whys, err := v.Check(ctx, engine.Disks{Devices: []lun.Device{disk}}, []engine.InGuest{want, {Volume: want.Volume, Snapshot: "no-such-snapshot"}})
	if err != nil || len(whys) != 2 || whys[0] != "" || whys[1] == "" {
		t.Fatalf("Check: %q, %v; want the first found, the second not", whys, err)
	}
	const name = "set-0123456789abcdef/a VM with ü/vda"
	view, err := v.Start(ctx, name, engine.Disks{Devices: []lun.Device{disk}}, []engine.InGuest{want}, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Stop(ctx, name) })
	if len(view.Exports) != 1 {
		t.Fatalf("exports: %q", view.Exports)
	}
	serves(t, view, disk.Size())

	// Another control plane, which has only the state directory.
	later, err := newViews(state, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := later.Stop(ctx, "set-0123456789abcdef/another/vda"); err != nil {
		t.Errorf("stopping a view that is not there: %v", err)
	}
	serves(t, view, disk.Size())
	// Started again under the same name, it takes the place of the first.
	if view, err = later.Start(ctx, name, engine.Disks{Devices: []lun.Device{disk}}, []engine.InGuest{want}, ""); err != nil {
		t.Fatal(err)
	}
	serves(t, view, disk.Size())
	if err := v.Stop(ctx, name); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(view.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is there after Stop: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(state, "views")); err != nil || len(left) != 0 {
		t.Errorf("left after Stop: %v, %v", left, err)
	}
	if err := v.Stop(ctx, name); err != nil {
		t.Errorf("stopping it again: %v", err)
	}
}

// serves has a foreign client look at the view. It needs nbdinfo (Debian:
// libnbd-bin); without it only the socket is looked at.
func serves(t *testing.T, v engine.View, size int64) {
	t.Helper()
	if _, err := os.Stat(v.Socket); err != nil {
		t.Fatal(err)
	}
	nbdinfo, err := exec.LookPath("nbdinfo")
	if err != nil {
		t.Log("nbdinfo is not installed (libnbd-bin): the view is not read")
		return
	}
	out, err := exec.CommandContext(t.Context(), nbdinfo, "--size", "nbd+unix:///"+v.Exports[0]+"?socket="+v.Socket).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(size) {
		t.Fatalf("nbdinfo: %s, %v; want %d bytes", out, err, size)
	}
}

func TestFailedViewLeavesNothing(t *testing.T) {
	disk, want := guestDisk(t)
	state := t.TempDir()
	v, err := newViews(state, RecoveryConfig{Overlay: filepath.Join(state, "views")})
	if err != nil {
		t.Fatal(err)
	}
	want.Snapshot = "no-such-snapshot"
	if _, err := v.Start(t.Context(), "a/b", engine.Disks{Devices: []lun.Device{disk}}, []engine.InGuest{want}, ""); err == nil {
		t.Fatal("a view of a snapshot that is not there")
	}
	if left, err := os.ReadDir(filepath.Join(state, "views")); err != nil || len(left) != 0 {
		t.Errorf("left after a failed start: %v, %v", left, err)
	}
}

func TestDamagedRecordIsNotGuessedAt(t *testing.T) {
	state := t.TempDir()
	v, err := newViews(state, RecoveryConfig{Overlay: filepath.Join(state, "views")})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{", `{"name":"other"}`} {
		if err := os.WriteFile(v.path("a/b", ".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := v.Stop(t.Context(), "a/b"); err == nil {
			t.Errorf("record %q: Stop says that nothing is left", text)
		}
	}
}

func TestStateTooDeepForSockets(t *testing.T) {
	if _, err := newViews(filepath.Join(t.TempDir(), strings.Repeat("d", 90)), RecoveryConfig{Overlay: t.TempDir()}); err == nil {
		t.Error("a socket path that the kernel can't take is taken")
	}
}
