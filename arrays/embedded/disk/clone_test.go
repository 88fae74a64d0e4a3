package disk_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/arrays/embedded/disk/loopfs"
)

const mib = 1 << 20

func TestClone(t *testing.T) {
	dir, fs := loopfs.Mount(t, loopfs.XFS, 512*mib).Dir, disk.OS()
	if err := disk.CanClone(fs, dir); err != nil {
		t.Fatalf("CanClone on XFS: %v", err)
	}
	src := file(t, dir, "src")
	old := bytes.Repeat([]byte("old!"), mib)
	if _, err := src.WriteAt(old, 0); err != nil { // and no Sync
		t.Fatal(err)
	}
	if err := src.Truncate(64 * mib); err != nil {
		t.Fatal(err)
	}
	_, before, err := fs.Space(dir)
	if err != nil {
		t.Fatal(err)
	}
	dst := file(t, dir, "dst")
	if err := disk.Clone(dst, src); err != nil {
		t.Fatal(err)
	}
	if _, after, _ := fs.Space(dir); before-after > 6*mib { // src itself is allocated by it
		t.Errorf("a clone of 4 MiB took %d bytes", before-after)
	}
	if _, err := src.WriteAt(bytes.Repeat([]byte("new!"), 1024), mib); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst.Name())
	if err != nil || len(got) != 64*mib || !bytes.Equal(got[:len(old)], old) || bytes.Trim(got[len(old):], "\x00") != nil {
		t.Errorf("the clone does not hold what its origin did: %d bytes, %v", len(got), err)
	}
}

func TestCannotClone(t *testing.T) {
	fs := disk.OS()
	xfs, ext4 := loopfs.Mount(t, loopfs.XFS, 512*mib).Dir, loopfs.Mount(t, loopfs.Ext4, 64*mib).Dir
	if err := disk.CanClone(fs, ext4); !errors.Is(err, disk.ErrNoClone) {
		t.Errorf("CanClone on ext4: %v", err)
	}
	if err := disk.CanClone(hidden{fs}, xfs); !errors.Is(err, disk.ErrNoClone) {
		t.Errorf("CanClone of files that are no Cloners: %v", err)
	}
	if err := disk.Clone(file(t, xfs, "a"), file(t, ext4, "b")); !errors.Is(err, disk.ErrNoClone) {
		t.Errorf("a clone over file systems: %v", err)
	}
	if err := disk.CanClone(copying{fs}, ext4); !errors.Is(err, disk.ErrNoClone) {
		t.Errorf("CanClone where a clone is the file itself: %v", err)
	}
	if err := disk.CanClone(fs, filepath.Join(ext4, "none")); err == nil || errors.Is(err, disk.ErrNoClone) {
		t.Errorf("CanClone in no directory: %v, want an error that leaves it open", err)
	}
	for _, dir := range []string{xfs, ext4} {
		names, err := fs.ReadDir(dir)
		for _, n := range names {
			if n[0] == '.' || err != nil {
				t.Errorf("%s was left in %s; %v", n, dir, err)
			}
		}
	}
}

func file(t *testing.T, dir, name string) disk.File {
	t.Helper()
	f, err := disk.OS().OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// hidden is a file system whose files are no Cloners.
type hidden struct{ disk.FS }

func (h hidden) OpenFile(name string, flag int) (disk.File, error) {
	f, err := h.FS.OpenFile(name, flag)
	if err != nil {
		return nil, err
	}
	return struct{ disk.File }{f}, nil
}

// copying is a file system whose clones are taken when they are read, too late.
type copying struct{ disk.FS }

type late struct {
	disk.File
	src disk.File
}

func (c copying) OpenFile(name string, flag int) (disk.File, error) {
	f, err := c.FS.OpenFile(name, flag)
	return &late{File: f}, err
}

func (l *late) CloneFrom(src disk.File) error {
	l.src = src.(*late).File
	return nil
}

func (l *late) ReadAt(p []byte, off int64) (int, error) {
	n, err := l.src.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}
