package recovery_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
)

// unpacked is where images lie for all tests of this process, read-only.
var unpacked string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cleave-recovery-test-*")
	if err != nil {
		panic(err)
	}
	unpacked = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// unpack returns an image of testdata as a file.
func unpack(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(unpacked, name+".img")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := luntest.Unpack(name, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// images unpacks images and returns them as sources.
func images(t testing.TB, names ...string) []open.Source {
	t.Helper()
	var out []open.Source
	for _, n := range names {
		out = append(out, source(t, unpack(t, n)))
	}
	return out
}

func source(t testing.TB, path string) open.Source {
	t.Helper()
	d, err := open.File(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return open.Source{Name: filepath.Base(path), Device: d}
}

func probe(t testing.TB, sources ...open.Source) *open.Contents {
	t.Helper()
	c, err := open.Probe(context.Background(), sources...)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range c.Damage {
		t.Errorf("finding on a good image: %v", err)
	}
	return c
}
