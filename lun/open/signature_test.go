package open

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/luntest"
)

// TestSignature: what mkfs of many kinds makes, by its name; and what isn't read is
// refused by it.
func TestSignature(t *testing.T) {
	path := filepath.Join(t.TempDir(), "volume")
	for _, tc := range []struct{ mkfs, name string }{
		{"mkfs.ext4 -q -F", "ext4"}, {"mkfs.ext2 -q -F", "ext4"}, {"mkfs.xfs -q -f", "xfs"}, {"mkfs.btrfs -q -f", "btrfs"}, {"mkfs.fat -F 32", "fat"}, {"mkfs.fat -F 16", "fat"},
		{"mkntfs -q -F", "ntfs"}, {"mkswap", "swap"}, {"mkfs.f2fs -q -f", "f2fs"}, {"mkfs.exfat", "exfat"},
	} {
		w := strings.Fields(tc.mkfs)
		if _, err := exec.LookPath(w[0]); err != nil {
			continue // some are nobody's dependency
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(320<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(w[0], append(w[1:], path)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", tc.mkfs, err, out)
		}
		d, err := File(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Signature(d); err != nil || got != tc.name {
			t.Errorf("%s: %q, %v", tc.mkfs, got, err)
		}
		_, err = FileSystem(d)
		if read := !errors.Is(err, ErrNoFileSystem); !read && !strings.HasPrefix(err.Error(), tc.name+": ") {
			t.Errorf("%s: %v", tc.mkfs, err)
		}
		d.Close()
	}
	vmfs := make([]byte, 3<<20)
	copy(vmfs[1<<20:], "\x0d\xd0\x01\xc0")
	if _, err := FileSystem(luntest.ReadOnly(vmfs)); !errors.Is(err, ErrNoFileSystem) || !strings.Contains(err.Error(), "vmfs6-tools") {
		t.Errorf("VMFS: %v", err)
	}
	if got, err := Signature(luntest.ReadOnly(make([]byte, 100))); got != "" || err != nil {
		t.Errorf("nothing at all: %q, %v", got, err)
	}
}
