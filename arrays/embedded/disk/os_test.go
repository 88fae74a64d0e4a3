package disk

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
)

func TestReplace(t *testing.T) {
	fs, name := OS(), filepath.Join(t.TempDir(), "record")
	for _, content := range []string{"one", "a longer second one", "3"} {
		if err := Replace(fs, name, []byte(content)); err != nil {
			t.Fatal(err)
		}
		b, err := ReadFile(fs, name, 100)
		if err != nil || string(b) != content {
			t.Fatalf("got %q, %v", b, err)
		}
	}
	if _, err := ReadFile(fs, name, 0); err == nil {
		t.Error("a file over the limit was read")
	}
	if names, _ := fs.ReadDir(filepath.Dir(name)); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

// The lock is the kernel's: util-linux's flock(1) is kept out as well.
func TestLock(t *testing.T) {
	fs, name := OS(), filepath.Join(t.TempDir(), "lock")
	l, err := fs.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Lock(name); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v", err)
	}
	if err := exec.Command("flock", "-n", name, "true").Run(); err == nil {
		t.Error("flock(1) got the lock")
	}
	l.Close()
	if err := exec.Command("flock", "-n", name, "true").Run(); err != nil {
		t.Errorf("flock(1) after Close: %v", err)
	}
}

func TestHolesAndZeroes(t *testing.T) {
	fs, name := OS(), filepath.Join(t.TempDir(), "raw")
	f, err := fs.OpenFile(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const mib = 1 << 20
	if err := f.Truncate(8 * mib); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("x", 4*mib)), 2*mib); err != nil {
		t.Fatal(err)
	}
	if err := f.PunchHole(3*mib, mib); err != nil {
		t.Fatal(err)
	}
	if err := f.Zero(4*mib, 4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil || len(b) != 8*mib {
		t.Fatal(len(b), err)
	}
	var at, data int64
	err = f.Extents(0, 8*mib, func(x lun.Extent) error {
		if x.Off != at || x.Len <= 0 {
			t.Errorf("extent %+v, want one from %d", x, at)
		}
		at += x.Len
		if !x.Hole {
			data += x.Len
		} else if strings.Trim(string(b[x.Off:x.Off+x.Len]), "\x00") != "" {
			t.Errorf("%+v does not read as zeroes", x)
		}
		return nil
	})
	if err != nil || at != 8*mib || data < 3*mib-4096 {
		t.Errorf("extents end at %d with %d bytes of data: %v", at, data, err)
	}
	for i, c := range b {
		want := byte(0)
		if i >= 2*mib && i < 6*mib && (i < 3*mib || i >= 4*mib+4096) {
			want = 'x'
		}
		if c != want {
			t.Fatalf("byte %d is %q, want %q", i, c, want)
		}
	}
}

// What is known of a file's extents is no longer believed once a hole was made,
// however that was done.
func TestExtentsAfterAHoleWasMade(t *testing.T) {
	const size = 1 << 20
	for name, make := range map[string]func(File) error{
		"punched":   func(f File) error { return f.PunchHole(size/4, size/4) },
		"cut short": func(f File) error { return errors.Join(f.Truncate(size/4), f.Truncate(size)) },
	} {
		t.Run(name, func(t *testing.T) {
			f, err := OS().OpenFile(filepath.Join(t.TempDir(), "raw"), os.O_RDWR|os.O_CREATE)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(strings.Repeat("x", size)), 0); err != nil {
				t.Fatal(err)
			}
			first := func(off int64) (x lun.Extent) {
				t.Helper()
				done := errors.New("one is enough")
				err := f.Extents(off, size-off, func(e lun.Extent) error { x = e; return done })
				if !errors.Is(err, done) {
					t.Fatal(err)
				}
				return x
			}
			for _, off := range []int64{4096, 0, 8192} {
				if got, want := first(off), (lun.Extent{Off: off, Len: size - off}); got != want {
					t.Errorf("written: %+v, want %+v", got, want)
				}
			}
			if err := make(f); err != nil {
				t.Fatal(err)
			}
			if got, want := first(0), (lun.Extent{Len: size / 4}); got != want {
				t.Errorf("with a hole: %+v, want %+v", got, want)
			}
			if got := first(size / 4); !got.Hole {
				t.Errorf("the hole: %+v", got)
			}
		})
	}
}
