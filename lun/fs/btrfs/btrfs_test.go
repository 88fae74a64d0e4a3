package btrfs_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	files "github.com/cleave-san/cleave/lun/fs/btrfs"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/btrfs"
)

// openFS opens a subvolume by its path; "" is the default one.
func openFS(t testing.TB, dev lun.Device, path string) *files.FS {
	t.Helper()
	f, err := btrfs.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	id := uint64(0)
	if path != "" {
		list, err := f.Subvolumes()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.Path == path {
				id = s.ID
			}
		}
	}
	x, err := files.Open(f, id)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// sums are those of all regular files, as sha256sum prints them.
func sums(t testing.TB, x fs.FS) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := fs.Walk(x, x.Root(), func(v fs.Visit) error {
		if v.Err != nil {
			return v.Err
		}
		if v.Stat.Type != fs.Regular {
			return nil
		}
		f, err := x.Open(v.Stat.Ref)
		if err != nil {
			return err
		}
		h := sha256.New()
		if _, err := io.CopyBuffer(h, io.NewSectionReader(f, 0, f.Size()), make([]byte, 1<<20)); err != nil {
			return fmt.Errorf("%s: %w", v.Path, err)
		}
		out["./"+v.Path] = hex.EncodeToString(h.Sum(nil))
		luntest.CheckMap(t, fs.Device(f), 0, f.Size())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOracles: the sums that the guest printed of its files.
func TestOracles(t *testing.T) {
	dir, err := luntest.Testdata()
	if err != nil {
		t.Fatal(err)
	}
	for path, list := range map[string]string{"@": "btrfs-open1.live.sha256", "@snap": "btrfs-open1.snap.sha256"} {
		b, err := os.ReadFile(filepath.Join(dir, list))
		if err != nil {
			t.Fatal(err)
		}
		got := sums(t, openFS(t, luntest.Image(t, "btrfs-open1"), path))
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		for _, line := range lines {
			sum, name, _ := strings.Cut(line, "  ")
			if got[name] != sum {
				t.Errorf("%s in %s: %s, want %s", name, path, got[name], sum)
			}
		}
		if len(got) != len(lines) {
			t.Errorf("%s: %d files, want %d", path, len(got), len(lines))
		}
	}
}

func sumOf(b []byte) string {
	h := sha256.Sum256(b)
	return " " + hex.EncodeToString(h[:8])
}

func attributes(list []string) string {
	slices.Sort(list)
	if len(list) == 0 {
		return ""
	}
	return " with " + strings.Join(list, ", ")
}
