//go:build lab

package filesystems

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/fat"
	"github.com/cleave-san/cleave/lun/fs/fstest"
)

// fatOptions are mkfs.fat's of a seed, and a size that they are possible with.
func fatOptions(r *rand.Rand) (size int64, mkfs []string) {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	mkfs = []string{"mkfs.fat", "-f", pick("1", "2"), "-n", fmt.Sprint("SEED", r.IntN(100))}
	switch bits := pick("12", "16", "32"); bits {
	case "12":
		return 24 << 20, append(mkfs, "-F", bits, "-S", pick("512", "1024", "2048", "4096"), "-r", pick("512", "1024"))
	case "16":
		return 96 << 20, append(mkfs, "-F", bits, "-S", pick("512", "1024"), "-r", pick("512", "2048"), "-R", pick("4", "8"))
	default: // one with fewer clusters is another to mtools
		n := 1 << r.IntN(3)
		return int64(68000+r.IntN(1000)) * int64(512*n), append(mkfs, "-F", bits, "-s", fmt.Sprint(n))
	}
}

// fatName is one that FAT can hold, and mtools can write: it fails where a name takes
// more entries than a cluster has.
func fatName(r *rand.Rand, n int) string {
	s := fmt.Sprintf("f%d", n)
	switch r.IntN(6) {
	case 0:
		s = strings.ToUpper(s) + ".TXT"
	case 1:
		s += strings.Repeat("x", r.IntN(160)) + ".long"
	case 2:
		s = "." + s + " é☃ +,;=[].x"
	case 3:
		s = "Mixed Case " + s
	}
	return s
}

// fatFill makes files below a directory of this host.
func fatFill(t *testing.T, r *rand.Rand, dir string) {
	dirs := []string{dir}
	at := time.Date(1985+r.IntN(100), 5, 17, r.IntN(24), r.IntN(60), 2*r.IntN(30), 0, time.UTC)
	for i := range 60 {
		name := filepath.Join(dirs[r.IntN(len(dirs))], fatName(r, i))
		if r.IntN(6) == 0 {
			if err := os.Mkdir(name, 0o755); err != nil {
				t.Fatal(err)
			}
			dirs = append(dirs, name)
			continue
		}
		b := make([]byte, r.IntN(1<<(3+r.IntN(15))))
		for k := range b {
			b[k] = byte(r.Uint32())
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// fatLoad puts files into an image, deletes some and puts others into their places.
func fatLoad(t *testing.T, r *rand.Rand, image string) {
	for round := range 3 {
		dir := filepath.Join(t.TempDir(), fmt.Sprintf("Directory of round %d", round))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fatFill(t, r, dir)
		mtools(t, "mcopy", "-s", "-m", "-Q", "-i", image, dir, "::")
		var gone []string
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if r.IntN(2) == 0 && !strings.ContainsAny(e.Name(), "[]") {
				gone = append(gone, "::/"+filepath.Base(dir)+"/"+e.Name())
			}
		}
		if len(gone) > 0 {
			mtools(t, "mdeltree", append([]string{"-i", image}, gone...)...)
		}
	}
}

func mtools(t *testing.T, name string, arg ...string) {
	t.Helper()
	fstest.Run(t, "env", append([]string{"LC_ALL=C.UTF-8", "TZ=UTC", "MTOOLS_SKIP_CHECK=1", name}, arg...)...)
}

// fatTree is what two views of a FAT have in common: no directory's time, no
// time but that of the last change, and no modes.
func fatTree(tree fstest.Tree) fstest.Tree {
	out := make(fstest.Tree)
	for path, l := range tree {
		kind, _, _ := strings.Cut(l.What, " ")
		n := fstest.Line{What: kind, Content: l.Content}
		if kind == fs.Regular.String() {
			n.Times, _, _ = strings.Cut(l.Times, " ")
		}
		out[path] = n
	}
	return out
}

// TestFAT: every image is read as mtools reads it, and the same after a write that
// left it marked as not unmounted, which is told.
func TestFAT(t *testing.T) {
	for i := range *images {
		seed := *first + uint64(i)
		r := rand.New(rand.NewPCG(seed, 3))
		size, mkfs := fatOptions(r)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("%q", mkfs[1:])
			image := fstest.Image(t, t.TempDir(), size, mkfs...)
			fatLoad(t, r, image)
			fstest.Run(t, "fsck.fat", "-n", image)
			out := t.TempDir()
			mtools(t, "mcopy", "-s", "-m", "-n", "-i", image, "::/", out)
			host, err := fstest.Host(out)
			if err != nil {
				t.Fatal(err)
			}
			want := fatTree(host)
			f, err := fat.Open(fstest.Device(t, image))
			if err != nil {
				t.Fatal(err)
			}
			got, err := fstest.Of(f, fstest.Device(t, image))
			if err != nil {
				t.Fatal(err)
			}
			fstest.Compare(t, fatTree(got), want, fstest.Options{})
			if w := f.Info().Warnings; w != nil {
				t.Error(w)
			}
			if len(want) < 20 {
				t.Errorf("only %d files", len(want))
			}
			fatDirty(t, image, f.Info().Variant == "FAT32", want)
			t.Logf("%d files equal", len(want))
		})
	}
}

// fatDirty marks an image as Linux does while it is mounted.
func fatDirty(t *testing.T, image string, large bool, want fstest.Tree) {
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	state := 37
	if large {
		state = 65
	}
	b[state] |= 1
	f, err := fat.Open(&fstest.Memory{Bytes: b})
	if err != nil {
		t.Fatal(err)
	}
	got, err := fstest.Of(f, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	fstest.Compare(t, fatTree(got), want, fstest.Options{})
	if w := f.Info().Warnings; len(w) != 1 {
		t.Errorf("warnings %v, want one", w)
	}
}
