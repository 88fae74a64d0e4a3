package writeorder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/plugin/dataplane"
)

const initiator = "iqn.2026-01.net.example:writer"

func TestGroupsOf1(t *testing.T)  { measure(t, straight, 1) }
func TestGroupsOf8(t *testing.T)  { measure(t, straight, 8) }
func TestGroupsOf64(t *testing.T) { measure(t, straight, 64) }

func TestGroupsOf1OverISCSI(t *testing.T)  { measure(t, overISCSI, 1) }
func TestGroupsOf8OverISCSI(t *testing.T)  { measure(t, overISCSI, 8) }
func TestGroupsOf64OverISCSI(t *testing.T) { measure(t, overISCSI, 64) }

// way is an array with n volumes, and how writers come to them.
type way func(t *testing.T, n int) (driver.Driver, []arraytest.Volume)

// measure splits the volumes as one group, again and again, under a load that
// never ends.
func measure(t *testing.T, open way, n int) {
	d, vs := open(t, n)
	a := arrays.New("embedded", d, arrays.Options{})
	load, err := arraytest.StartLoad(vs)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	done, violations := 0, 0
	for ; done < splits(n); done++ {
		err := load.Split(t.Context(), a, driver.Tag(fmt.Sprintf("split-%d", done)))
		if torn := (*arraytest.TornError)(nil); errors.As(err, &torn) {
			violations++
			t.Error(err)
		} else if err != nil {
			t.Error(err)
			break
		}
	}
	if err := load.Stop(); err != nil {
		t.Error(err)
	}
	t.Logf("FIGURE splits of groups of %d: %d, of which %d violate the write order", len(vs), done, violations)
	t.Logf("FIGURE writes meanwhile: %d in %.1f s", load.Writes(), time.Since(begun).Seconds())
}

// The control splits one volume after the other, and is caught, whichever way
// the writers come.
func TestControl(t *testing.T)          { control(t, straight) }
func TestControlOverISCSI(t *testing.T) { control(t, overISCSI) }

func control(t *testing.T, open way) {
	d, vs := open(t, 8)
	a := arrays.New("sequential", arraytest.Sequential{Driver: d, Opener: d.(driver.Opener)}, arrays.Options{})
	load, err := arraytest.StartLoad(vs)
	if err != nil {
		t.Fatal(err)
	}
	const tries = 20
	caught := 0
	for i := range tries {
		var torn *arraytest.TornError
		if err := load.Split(t.Context(), a, driver.Tag(fmt.Sprintf("torn-%d", i))); errors.As(err, &torn) {
			caught++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := load.Stop(); err != nil {
		t.Error(err)
	}
	t.Logf("FIGURE sequential splits of groups of %d caught: %d of %d", len(vs), caught, tries)
	if caught == 0 {
		t.Error("no group that was split one volume after the other was caught")
	}
}

// memory is a directory on tmpfs, where there is one.
func memory(t *testing.T) string {
	t.Helper()
	base := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "cleave-writeorder-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func pools(dir string) map[string]string {
	return map[string]string{"a": filepath.Join(dir, "a"), "b": filepath.Join(dir, "b")}
}

func straight(t *testing.T, n int) (driver.Driver, []arraytest.Volume) {
	t.Helper()
	dir := memory(t)
	a, err := embedded.Open(t.Context(), embedded.Options{StateDir: filepath.Join(dir, "state"), Pools: pools(dir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	vols := make([]arraytest.Volume, n)
	for i := range vols {
		v, err := a.CreateVolume(t.Context(), embedded.CreateVolume{Name: fmt.Sprintf("v%d", i), Size: arraytest.MinVolume, Pools: []string{"a", "b"}})
		if err != nil {
			t.Fatal(err)
		}
		h, err := a.OpenVolume(v.ID, "writer")
		if err != nil {
			t.Fatal(err)
		}
		vols[i] = arraytest.Volume{ID: v.ID, Device: h}
	}
	return a, vols
}

// serve runs a data plane until the test ends.
func serve(t *testing.T, dir string) *remote.Client {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	cfg := dataplane.Config{
		StateDir: filepath.Join(dir, "state"), Pools: pools(dir),
		Portals: []dataplane.Portal{{Addr: netip.MustParseAddrPort("127.0.0.1:0")}}, IQN: "iqn.2026-01.net.example:array",
		Socket: filepath.Join(dir, "control"), Ready: func(remote.Status) { close(ready) },
	}
	go func() { ended <- dataplane.Run(ctx, cfg, nil) }()
	t.Cleanup(cancel)
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return remote.New(cfg.Socket)
}

// overISCSI makes n volumes that one qemu-storage-daemon writes to, each over a
// session of its own.
func overISCSI(t *testing.T, n int) (driver.Driver, []arraytest.Volume) {
	t.Helper()
	const prog = "qemu-storage-daemon"
	version, err := exec.Command(prog, "--version").Output()
	if err != nil {
		t.Skipf("needs %s (Debian packages qemu-system-common, qemu-block-extra): %v", prog, err)
	}
	t.Logf("PEER %s %s", prog, regexp.MustCompile(`[0-9][0-9.]*`).Find(version))
	dir := memory(t)
	c := serve(t, dir)
	socket := filepath.Join(dir, "nbd")
	args := []string{"--nbd-server", "addr.type=unix,addr.path=" + socket + ",max-connections=0"}
	out := make([]arraytest.Volume, n)
	for i := range out {
		v, err := c.CreateVolume(t.Context(), remote.CreateVolumeRequest{
			Name: fmt.Sprintf("v%d", i), Size: arraytest.MinVolume, Pools: []string{"a", "b"},
		})
		if err != nil {
			t.Fatal(err)
		}
		out[i].ID = v.ID
		at, err := c.ExposeVolume(t.Context(), v.ID, []string{initiator}, false)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args,
			"--blockdev", fmt.Sprintf("driver=iscsi,node-name=%s,transport=tcp,portal=%s,target=%s,lun=%d,initiator-name=%s", v.Name, at.Portals[0], at.IQN, at.LUN, initiator),
			"--export", fmt.Sprintf("type=nbd,id=x%s,node-name=%s,name=%s,writable=on", v.Name, v.Name, v.Name))
	}
	cmd := exec.Command(prog, args...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(complaints.String())
		}
	})
	for i := range out {
		out[i].Device = dial(t, socket, fmt.Sprintf("v%d", i))
	}
	return c, out
}

// dial waits until the export is there.
func dial(t *testing.T, socket, export string) lun.Device {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Export: export})
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		var op *net.OpError
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.As(err, &op) {
			t.Fatal(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}
