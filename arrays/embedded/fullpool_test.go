package embedded

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/loopfs"
)

// A real file system that gets full under a mirror: production goes on with the
// other one, nothing stable is lost, also over a restart, and the mirror comes
// back once there is room.
func TestFullFileSystem(t *testing.T) {
	small := loopfs.Mount(t, loopfs.Ext4, 24*mib).Dir
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent = ev.add
	o.Pools = map[string]string{"a": filepath.Join(small, "pool"), "b": o.Pools["b"]}
	ballast := filepath.Join(small, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b")
	want := make([]byte, 16*mib)
	for off := int64(0); off < 16*mib; off += mib / 4 {
		copy(want[off:], write(t, h, off, mib/4, byte('A'+off/mib)))
		if err := h.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	vi, _ := a.VolumeInfo(info.ID)
	if vi.Mirrors != 1 || vi.Replicas[0].State != driver.Broken || !strings.Contains(vi.Replicas[0].Reason, "no space left") {
		t.Fatalf("%+v", vi)
	}
	if p := a.Pools()[0]; p.Health == HealthOK {
		t.Fatalf("%+v", p)
	}
	h.Close()
	a.Close()
	if ev.count(MirrorDropped) != 1 || ev.count(VolumeOffline) != 0 {
		t.Fatalf("%+v", ev.events)
	}

	a = open(t, o)
	if got := mirrored(t, a, info.ID); !bytes.Equal(got, want) {
		t.Fatal("stable data lost")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := a.RepairVolume(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if vi, _ := a.VolumeInfo(info.ID); vi.Mirrors != 2 {
		t.Fatalf("%+v", vi)
	}
	if got := mirrored(t, a, info.ID); !bytes.Equal(got, want) {
		t.Fatal("stable data lost")
	}
}
