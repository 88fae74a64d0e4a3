package luntest_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
)

// TestImages: a file and the content in memory are the same, and the file is
// sparse.
func TestImages(t *testing.T) {
	const name = "lvm-o1-thick-4k"
	path := luntest.File(t, name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if m := luntest.Image(t, name); !bytes.Equal(b, m) || len(b) != 72<<20 {
		t.Errorf("%d bytes in the file, %d in memory, or others", len(b), len(m))
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil || st.Blocks*512 > 60<<20 {
		t.Errorf("%d bytes are taken, %v", st.Blocks*512, err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := luntest.Unpack(name, path); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, b) {
		t.Errorf("over a file that is there: other content (%v)", err)
	}
	if err := luntest.Unpack("none", filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image that there is not: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	d := luntest.ReadOnly("content")
	b := make([]byte, 3)
	if _, err := d.ReadAt(b, 4); err != nil || string(b) != "ent" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := d.ReadAt(b, 5); !errors.Is(err, lun.ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
	if _, err := d.WriteAt(b, 0); !errors.Is(err, lun.ErrReadOnly) {
		t.Errorf("a write: %v", err)
	}
}
