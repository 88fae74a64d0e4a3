package embedded_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/lun"
)

// lab is an embedded array with volumes of two mirrors; the first has three.
func lab(t *testing.T, volumes int) *arraytest.Lab {
	return labIn(t, memory(t), volumes, func(int) embedded.SnapshotPolicy { return embedded.ByMirror })
}

// memory is a directory on tmpfs, where there is one.
func memory(t *testing.T) string {
	base := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "cleave-provider-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// labIn is lab in a directory, with snapshots by a policy for each volume.
func labIn(t *testing.T, dir string, volumes int, policy func(i int) embedded.SnapshotPolicy) *arraytest.Lab {
	o := embedded.Options{StateDir: filepath.Join(dir, "state"), Pools: map[string]string{}}
	for _, pool := range []string{"a", "b", "c"} {
		o.Pools[pool] = filepath.Join(dir, pool)
	}
	l := &arraytest.Lab{}
	var a *embedded.Array
	open := map[driver.VolumeID][]*embedded.Volume{}
	l.Attach = func(t *testing.T, v driver.VolumeID) lun.Device {
		h, err := a.OpenVolume(v, "lab")
		if err != nil {
			t.Fatal(err)
		}
		open[v] = append(open[v], h)
		return h
	}
	l.Detach = func(t *testing.T, v driver.VolumeID) {
		for _, h := range open[v] {
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
		}
		delete(open, v)
	}
	l.Restart = func(t *testing.T) {
		if a != nil {
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if a, err = embedded.Open(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		clear(open)
		l.Driver, l.Volumes = a, nil
		for i := range volumes {
			pools := []string{"a", "b"}
			if i == 0 {
				pools = append(pools, "c")
			}
			info, err := a.CreateVolume(t.Context(), embedded.CreateVolume{Name: fmt.Sprintf("v%d", i), Size: 8 << 20, Pools: pools, Snapshots: policy(i)})
			if err != nil {
				t.Fatal(err)
			}
			l.Volumes = append(l.Volumes, arraytest.Volume{ID: info.ID, Device: l.Attach(t, info.ID)})
			if i == 0 {
				l.Disk = driver.Disk{NAA: info.Identity.NAAString(), Serial: info.Identity.Serial()}
			}
		}
	}
	l.Restart(t)
	t.Cleanup(func() { a.Close() })
	return l
}

func TestProvider(t *testing.T) {
	arraytest.Run(t, func(t *testing.T) *arraytest.Lab { return lab(t, 4) })
}

// The union of a group's splits holds a prefix of what was written, for groups
// of several sizes; one volume after the other is caught.
func TestWriteOrder(t *testing.T) {
	const splits = 24 // integration/writeorder does 1,000 of each
	for _, n := range []int{1, 8, 64} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			l := lab(t, n)
			a := arrays.New("embedded", l.Driver, arrays.Options{})
			for i := range max(splits/n, 3) {
				tag := driver.Tag(fmt.Sprintf("split-%d", i))
				if err := arraytest.SplitUnderLoad(t.Context(), a, tag, l.Volumes); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestWriteOrderControl(t *testing.T) {
	l := lab(t, 8)
	control := arraytest.Sequential{Driver: l.Driver, Opener: l.Driver.(driver.Opener)}
	a := arrays.New("sequential", control, arrays.Options{})
	const tries = 20
	for i := range tries {
		err := arraytest.SplitUnderLoad(t.Context(), a, driver.Tag(fmt.Sprintf("torn-%d", i)), l.Volumes)
		if err != nil {
			t.Logf("caught at try %d: %v", i+1, err)
			return
		}
	}
	t.Fatalf("%d groups split one volume after the other, and none was caught", tries)
}
