//go:build lab

package filesystems

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/fat"
	"github.com/cleave-san/cleave/lun/fs/fstest"
)

// sums prints what the guest's kernel reads of a file system: for each file its sum
// and its name, in a form without line ends in names.
const sums = `set -e
mkdir -p /tmp/m
mount -t vfat -o %s,utf8,tz=UTC /dev/%s /tmp/m
cd /tmp/m
find . -type f -exec sha256sum {} + | sort
cd /
umount /tmp/m
`

// boot starts a VM with the kernel's FAT and images as disks.
func boot(t *testing.T, name string, images ...string) *lab.Machine {
	t.Helper()
	v := lab.VM{Name: name, Kind: lab.Proof, Memory: 384, Modules: []string{"vfat", "nls_cp437", "nls_ascii", "nls_utf8"}}
	for _, i := range images {
		v.Disks = append(v.Disks, lab.Disk{File: i, Cache: "writeback"})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m, err := lab.Boot(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func run(t *testing.T, m *lab.Machine, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	out, err := m.Run(ctx, script)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

// readSums is what sums prints, as the reader has it.
func readSums(t *testing.T, f fs.FS, image string) map[string]bool {
	t.Helper()
	tree, err := fstest.Of(f, fstest.Device(t, image))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]bool)
	for path, l := range tree {
		if l.Content != "" {
			out[l.Content+"  ./"+path] = true
		}
	}
	return out
}

func compareSums(t *testing.T, got map[string]bool, want string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(want), "\n")
	for _, l := range lines {
		if !got[l] {
			t.Errorf("the kernel has %q", l)
		}
	}
	if len(lines) != len(got) || len(lines) < 20 {
		t.Errorf("the kernel has %d files, %d are read", len(lines), len(got))
	}
}

// TestFATKernel: images are read as Linux's vfat reads them, filled by mtools, and by the
// kernel itself in a VM that loses its power.
func TestFATKernel(t *testing.T) {
	var images []string
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 5))
		size, mkfs := fatOptions(r)
		image := fstest.Image(t, t.TempDir(), size, mkfs...)
		fatLoad(t, r, image)
		images = append(images, image)
	}
	m := boot(t, "writer", images...)
	for i, image := range images {
		f, err := fat.Open(fstest.Device(t, image))
		if err != nil {
			t.Fatal(err)
		}
		compareSums(t, readSums(t, f, image), run(t, m, fmt.Sprintf(sums, "ro", fmt.Sprintf("vd%c", 'a'+i))))
	}
	for i := range images {
		run(t, m, fmt.Sprintf(`set -e
mkdir -p /tmp/w%[1]d
mount -t vfat -o rw,utf8,tz=UTC /dev/vd%[2]c /tmp/w%[1]d
cd /tmp/w%[1]d
mkdir "of the kernel"
for k in $(seq 50); do head -c $((k * 997)) /dev/urandom >"of the kernel/é 😀 $k"; done
sync
rm "of the kernel/"*7
for k in $(seq 20); do echo $k >"of the kernel/late $k"; done
sync
`, i, 'a'+i))
	}
	m.Kill()
	<-m.Done()
	m = boot(t, "reader", images...)
	for i, image := range images {
		f, err := fat.Open(fstest.Device(t, image))
		if err != nil {
			t.Fatal(err)
		}
		if w := f.Info().Warnings; len(w) != 1 || !strings.Contains(w[0].Error(), "not unmounted") {
			t.Errorf("%s: warnings %v", f.Info().Variant, w)
		}
		compareSums(t, readSums(t, f, image), run(t, m, fmt.Sprintf(sums, "ro", fmt.Sprintf("vd%c", 'a'+i))))
	}
}
