package recovery_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/klauspost/compress/zstd"
)

// unpack writes an image of testdata, sparse, to a file of the test's own.
func unpack(t testing.TB, name string) string {
	t.Helper()
	in, err := os.Open(filepath.Join("..", "testdata", name+".img.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	z, err := zstd.NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	path := filepath.Join(t.TempDir(), name+".img")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, z); err != nil {
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
