package copyout_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/copyout"
	"github.com/cleave-san/cleave/lun/fs/ext4"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/luntest"
)

func open(t *testing.T, dir string) *os.File {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestCopy: what the kernel says of the copy is what the source says.
func TestCopy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for owners and devices")
	}
	f, err := ext4.Open(luntest.Image(t, "ext4-dirty-csum"))
	if err != nil {
		t.Fatal(err)
	}
	// On a file system of its own: /tmp may have no attributes.
	image := fstest.Image(t, t.TempDir(), 64<<20, "mke2fs", "-q", "-F", "-t", "ext4")
	dir, _ := fstest.Mount(t, image, "ext4", "")
	r, err := copyout.Copy(t.Context(), f, f.Root(), open(t, dir), "out", copyout.Options{Recursive: true, Failed: func(path string, err error) error {
		t.Errorf("%q: %v", path, err)
		return nil
	}})
	if err != nil || r.Files < 60 || r.Bytes == 0 || r.Owners {
		t.Errorf("%+v, %v", r, err)
	}
	want, err := fstest.Of(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := fstest.Host(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tree := range []fstest.Tree{got, want} {
		for path, l := range tree { // ctime is when it was copied
			l.Times, _, _ = strings.Cut(l.Times, " ")
			tree[path] = l
		}
	}
	fstest.Compare(t, got, want, fstest.Options{NoInodes: true, NoMap: true})
	if got["d/hello"].Inode != got["d/e/hard"].Inode {
		t.Error("a hard link became two files")
	}
	st, err := os.Stat(filepath.Join(dir, "out/d/holes"))
	if err != nil || fstest.Allocated(st) > 16<<10 {
		t.Errorf("a file of holes takes %d bytes, %v", fstest.Allocated(st), err)
	}
}

// trap is a directory with two entries of one name: a symbolic link that leads
// out, and a directory to be copied through it.
type trap struct {
	fs.FS
	outside string
}

func (p trap) Stat(r fs.Ref) (fs.Stat, error) {
	return fs.Stat{Ref: r, Type: []fs.Type{fs.Directory, fs.Symlink, fs.Directory, fs.Regular}[r.Inode-1], Mode: 0o777, Links: 1}, nil
}

func (p trap) List(r fs.Ref, _ uint64, fn func(fs.Entry) error) error {
	if r.Inode == 3 {
		return fn(fs.Entry{Name: "file", Ref: fs.Ref{Inode: 4}, Next: 1})
	}
	for i := range uint64(2) {
		if err := fn(fs.Entry{Name: "a", Ref: fs.Ref{Inode: 2 + i}, Next: i + 1}); err != nil {
			return err
		}
	}
	return nil
}

func (p trap) Readlink(fs.Ref) (string, error)                 { return p.outside, nil }
func (p trap) Xattrs(fs.Ref, func(string, []byte) error) error { return nil }

func TestTrap(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	var failed []string
	_, err := copyout.Copy(t.Context(), trap{outside: outside}, fs.Ref{Inode: 1}, open(t, dir), "out", copyout.Options{Recursive: true, Failed: func(path string, err error) error {
		if !errors.Is(err, os.ErrExist) {
			t.Errorf("%q: %v", path, err)
		}
		failed = append(failed, path)
		return nil
	}})
	if err != nil || len(failed) != 1 || failed[0] != "a" {
		t.Errorf("failed: %q, %v", failed, err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("written outside: %v, %v", left, err)
	}
}
