package localdev

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

func newFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func isBusy(err error) bool {
	var e *driver.Error
	return errors.As(err, &e) && e.Kind == driver.Busy
}

func TestWriterIsAlone(t *testing.T) {
	path := newFile(t)
	var told []lun.Extent
	before := 0
	w, err := Rewrite(t.Context(), path, Hooks{
		Before: func() error { before++; return nil },
		After:  func(list []lun.Extent) error { told = list; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !isBusy(err) {
		t.Errorf("Open of what is being rewritten: %v", err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Rewrite(soon, path, Hooks{}); !isBusy(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("two writers: %v", err)
	}
	for _, off := range []int64{300 << 10, 310 << 10, 0} {
		if _, err := w.WriteAt(bytes.Repeat([]byte{7}, 512), off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.WriteAt(make([]byte, 512), 1<<20); !errors.Is(err, lun.ErrOutOfRange) {
		t.Errorf("a write beyond the end: %v", err)
	}
	next := make(chan error, 1)
	go func() {
		w, err := Rewrite(t.Context(), path, Hooks{})
		if err == nil {
			err = w.Close()
		}
		next <- err
	}()
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Error(err)
	}
	if err := <-next; err != nil {
		t.Errorf("who waited: %v", err)
	}
	if _, err := w.WriteAt(make([]byte, 512), 0); !errors.Is(err, lun.ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}
	want := []lun.Extent{{Off: 0, Len: grain}, {Off: 4 * grain, Len: grain}}
	if before != 1 || len(told) != 2 || told[0] != want[0] || told[1] != want[1] {
		t.Errorf("before: %d calls; after: %v, want %v", before, told, want)
	}

	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := Rewrite(t.Context(), path, Hooks{}); !isBusy(err) {
		t.Errorf("Rewrite of what is read: %v", err)
	}
	again, err := Open(path)
	if err != nil {
		t.Fatalf("two readers: %v", err)
	}
	again.Close()
}

func TestNothingIsWrittenWithoutConsent(t *testing.T) {
	path := newFile(t)
	no := errors.New("no")
	w, err := Rewrite(t.Context(), path, Hooks{Before: func() error { return no }, After: func([]lun.Extent) error { return errors.New("told") }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte{1}, 0); !errors.Is(err, no) {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); err != nil || b[0] != 0 {
		t.Errorf("it was written: %v, %v", b[0], err)
	}
}

func TestOpensFilesOnly(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"relative", t.TempDir(), pipe, "/dev/null", "/nowhere/at/all"} {
		if d, err := Open(path); err == nil {
			d.Close()
			t.Errorf("%s was opened", path)
		}
	}
}

// Regions cover what was written, in order, apart, and are never too many.
func TestRegions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r regions
		seen := map[int64]bool{}
		for range rapid.IntRange(0, 300).Draw(t, "writes") {
			off, n := rapid.Int64Range(0, 1<<32).Draw(t, "off"), rapid.Int64Range(0, 1<<20).Draw(t, "n")
			r.add(off, n)
			for x := off / grain; n > 0 && x <= (off+n-1)/grain; x++ {
				seen[x] = true
			}
		}
		end, covered := int64(-1), 0
		for _, x := range r.list {
			if x.Off <= end || x.Len <= 0 || x.Off%grain != 0 || x.Len%grain != 0 {
				t.Fatalf("regions %v", r.list)
			}
			end = x.Off + x.Len
			for g := x.Off / grain; g < end/grain; g++ {
				if !seen[g] {
					t.Fatalf("grain %d was not written: %v", g, r.list)
				}
				covered++
			}
		}
		if covered != len(seen) {
			t.Fatalf("%d grains are told, %d were written", covered, len(seen))
		}
	})
	var r regions
	for i := range int64(3 * maxRegions) {
		r.add(i*3*grain, 1)
	}
	if len(r.list) > maxRegions || r.list[0].Off != 0 || r.list[len(r.list)-1].Off+r.list[len(r.list)-1].Len < (3*maxRegions-1)*3*grain {
		t.Errorf("%d regions", len(r.list))
	}
}
