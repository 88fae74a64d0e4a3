package recovery_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
)

// TestHolesAreHoles maps whatever is on disks of foreign tools' making, and views
// of them, before and after they are written to: a hole must read as zeroes, for
// a copy leaves it out.
func TestHolesAreHoles(t *testing.T) {
	for _, tc := range []struct {
		images  []string
		choose  []string
		refused []string // volumes that can't be read
	}{
		{images: []string{"lvm-o1-thick-4k"}},
		{images: []string{"lvm-o2-thick-gpt-crash"}, choose: []string{"vgo2/snap1"}},
		{images: []string{"lvm-o3-thin"}, refused: []string{"vgo3/pool"}},
		{images: []string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, choose: []string{"vgt/s1"}, refused: []string{"vgt/pool"}},
		{images: []string{"lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c"}, choose: []string{"vgm/r1", "vgm/m1"}, refused: []string{"vgm/five", "vgm/slow"}},
		{images: []string{"lvm-o4-a", "lvm-o4-b"}, choose: []string{"vgo4/good"}, refused: []string{"vgo4/tiny"}},
	} {
		t.Run(strings.Join(tc.images, "+"), func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			c := probe(t, images(t, tc.images...)...)
			for _, v := range c.Volumes() {
				d, err := v.Open()
				if (err != nil) != slices.Contains(tc.refused, v.Name) {
					t.Errorf("%s: %v", v.Name, err)
				}
				if err == nil {
					holes := checkMaps(t, r, d)
					t.Logf("%s: %d of %d bytes are holes", v.Name, holes, d.Size())
				}
			}
			view := openView(t, c, tc.choose...)
			for i, d := range view.Devices {
				clean := checkMaps(t, r, view.Clean[i])
				if clean == 0 || luntest.CheckMap(t, d, 0, d.Size()) != clean {
					t.Errorf("disk %d: %d bytes are holes, of its view others", i, clean)
				}
				for range 50 {
					off := r.Int64N(d.Size()/512) * 512
					n := min(r.Int64N(64)*512, d.Size()-off)
					var err error
					if r.IntN(2) == 0 {
						err = d.(lun.Trimmer).Trim(off, n)
					} else {
						_, err = d.WriteAt([]byte(strings.Repeat("x", int(n))), off)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				checkMaps(t, r, d)
				if err := d.(lun.Trimmer).Trim(0, d.Size()); err != nil {
					t.Fatal(err)
				}
				if holes := luntest.CheckMap(t, d, 0, d.Size()); holes != d.Size() {
					t.Errorf("disk %d: trimmed as a whole, %d of %d bytes are holes", i, holes, d.Size())
				}
			}
		})
	}
}

// checkMaps maps all of a device, and parts of it.
func checkMaps(t *testing.T, r *rand.Rand, d lun.Device) (holes int64) {
	t.Helper()
	for range 20 {
		off := r.Int64N(d.Size()/512) * 512
		luntest.CheckMap(t, d, off, min(r.Int64N(1<<20), d.Size()-off))
	}
	return luntest.CheckMap(t, d, 0, d.Size())
}
