package ext4_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs/ext4"
	"github.com/cleave-san/cleave/lun/fs/fstest"
)

// kinds are ways to make a file system, and to mount it; integration/filesystems
// has many more.
var kinds = []struct {
	name, mkfs, mount string
}{
	{"default", "", ""},
	{"inline", "-O inline_data,ea_inode,metadata_csum_seed,large_dir -I 512", ""},
	{"data_journal", "-J size=16", "data=journal"},
}

// mke2fs makes a file system in dir by one of the kinds.
func mke2fs(t *testing.T, dir, options string, size int64) string {
	args := append([]string{"mke2fs", "-q", "-F"}, strings.Fields(options)...)
	if !strings.Contains(options, "-t ") {
		args = append(args, "-t", "ext4")
	}
	return fstest.Image(t, dir, size, args...)
}

var magic = []byte{0xC0, 0x3B, 0x39, 0x98}

// check compares a file system with what the kernel shows of a copy of it, and
// wants e2fsck to find nothing but orphans where the journal was replayed. Data
// that is journaled may still be in the journal.
func check(t *testing.T, image string, dirty, journaled bool) {
	t.Helper()
	dev := fstest.Device(t, image)
	f, err := ext4.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	if dirty != (f.Info().Replayed != "") {
		t.Errorf("replayed: %q", f.Info().Replayed)
	}
	got, err := fstest.Of(f, dev)
	if err != nil {
		t.Fatal(err)
	}
	copied := fstest.Clone(t, image)
	defer os.Remove(copied)
	dir, unmount := fstest.Mount(t, copied, "ext4", "noatime")
	want, err := fstest.Host(dir)
	if err != nil {
		t.Fatal(err)
	}
	unmount()
	fstest.Compare(t, got, want, fstest.Options{NoMap: journaled && dirty})
	if len(want) < 20 {
		t.Errorf("only %d files", len(want))
	}
	t.Logf("%d files equal; %s", len(want), f.Info().Replayed)

	second := fstest.Clone(t, image)
	defer os.Remove(second)
	if f.Device() != nil && dirty {
		write(t, second, f.Device())
	}
	out, code := fstest.Command(t, "e2fsck", "-fp", second)
	if code > 1 || strings.Contains(out, "recovering journal") {
		t.Errorf("e2fsck of the replayed view: status %d\n%s", code, out)
	}
}

// write puts a device's content over an image.
func write(t *testing.T, image string, d lun.Device) {
	t.Helper()
	w, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	b := make([]byte, 1<<20)
	for off := int64(0); off < d.Size(); off += int64(len(b)) {
		p := b[:min(int64(len(b)), d.Size()-off)]
		if _, err := d.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKernel: file systems of all kinds, unmounted and cut off in the middle of
// changes, are read as the kernel reads them.
func TestKernel(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("needs mke2fs: make deps")
	}
	pool := fstest.Pool(t, 1<<30)
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			image := mke2fs(t, pool, k.mkfs, 64<<20)
			defer os.Remove(image)
			dir, unmount := fstest.Mount(t, image, "ext4", k.mount)
			l := fstest.NewLoad(dir, uint64(i))
			l.Magic, l.Largest = magic, 1<<20
			if err := l.Run(t.Context(), 150); err != nil {
				t.Fatal(err)
			}
			unmount()
			check(t, image, false, false)
			dir, unmount = fstest.Mount(t, image, "ext4", k.mount)
			for _, cut := range cut(t, image, dir, uint64(i), 1) {
				check(t, cut, true, k.name == "inline" || k.name == "data_journal")
				os.Remove(cut)
			}
			unmount()
		})
	}
}

// cut loads a mounted file system and clones its image n times meanwhile.
func cut(t *testing.T, image, dir string, seed uint64, n int) (cuts []string) {
	ctx, cancel := context.WithCancel(t.Context())
	var loads sync.WaitGroup
	for g := range 2 {
		own := fmt.Sprintf("%s/load%d-%d", dir, seed, g)
		if err := os.Mkdir(own, 0o755); err != nil {
			t.Fatal(err)
		}
		l := fstest.NewLoad(own, seed*100+uint64(g))
		l.Magic, l.Sync, l.Largest = magic, true, 1<<20
		loads.Go(func() {
			if err := l.Run(ctx, 1<<30); err != nil {
				t.Error(err)
			}
		})
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range n {
		// Something is committed, and something is not.
		for range 1 + (seed+uint64(i))%3 {
			if err := unix.Syncfs(int(d.Fd())); err != nil {
				t.Fatal(err)
			}
		}
		cuts = append(cuts, fstest.Clone(t, image))
	}
	cancel()
	loads.Wait()
	return cuts
}
