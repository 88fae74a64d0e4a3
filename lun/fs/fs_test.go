package fs_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// fake is a file system of directories by inode number: a number without a
// directory is a regular file, one above 900 can't be described.
type fake map[uint64][]fs.Entry

func (f fake) Info() fs.Info { return fs.Info{Kind: "fake"} }
func (f fake) Root() fs.Ref  { return fs.Ref{Inode: 1} }

func (f fake) Stat(r fs.Ref) (fs.Stat, error) {
	if r.Inode > 900 {
		return fs.Stat{}, &lun.FormatError{Format: "fake", Offset: -1, Field: "inode", Value: r.Inode, Reason: "damaged"}
	}
	st := fs.Stat{Ref: r, Type: fs.Regular}
	if _, ok := f[r.Inode]; ok {
		st.Type = fs.Directory
	}
	return st, nil
}

func (f fake) Lookup(dir fs.Ref, name string) (r fs.Ref, err error) {
	if _, ok := f[dir.Inode]; !ok {
		return fs.Ref{}, fs.ErrNotDir
	}
	err = fs.ErrNotExist
	f.List(dir, 0, func(e fs.Entry) error {
		if e.Name == name {
			r, err = e.Ref, nil
		}
		return nil
	})
	return r, err
}

func (f fake) List(dir fs.Ref, after uint64, fn func(fs.Entry) error) error {
	for i, e := range f[dir.Inode] {
		if e.Next = uint64(i + 1); e.Next > after {
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	if dir.Inode == 5 {
		return errors.New("the rest is damaged")
	}
	return nil
}

func (f fake) Open(fs.Ref) (fs.File, error)                    { return nil, fs.ErrNotFile }
func (f fake) Readlink(fs.Ref) (string, error)                 { return "", fs.ErrNotLink }
func (f fake) Xattrs(fs.Ref, func(string, []byte) error) error { return nil }
func entry(name string, inode uint64) fs.Entry {
	return fs.Entry{Name: name, Ref: fs.Ref{Inode: inode}}
}
func tree() fake {
	return fake{
		1: {entry("a", 2), entry("b", 3), entry("bad", 901), entry("z", 7)},
		3: {entry("loop", 1), entry("c", 5)},
		5: {entry("d", 6)},
	}
}

func TestFind(t *testing.T) {
	for path, want := range map[string]uint64{"": 1, "/": 1, ".": 1, "a": 2, "/b/c/": 5, "b//c/./d": 6} {
		if r, err := fs.Find(tree(), path); err != nil || r.Inode != want {
			t.Errorf("%q is %v, %v; want %d", path, r, err, want)
		}
	}
	for path, want := range map[string]error{"x": fs.ErrNotExist, "..": fs.ErrNotExist, "b/../a": fs.ErrNotExist, "a/x": fs.ErrNotDir} {
		if _, err := fs.Find(tree(), path); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
	}
}

// TestWalk: what can't be read is told and doesn't hide the rest; a directory
// that contains itself is not entered again.
func TestWalk(t *testing.T) {
	var got []string
	see := func(v fs.Visit) error {
		s := v.Path
		if v.Err != nil {
			s += "!"
		}
		if errors.Is(v.Err, fs.ErrTooDeep) {
			s += "loop"
		}
		got = append(got, s)
		if v.Path == "skip" {
			return fs.SkipDir
		}
		return nil
	}
	if err := fs.Walk(tree(), fs.Ref{Inode: 1}, see); err != nil {
		t.Fatal(err)
	}
	if want := []string{"", "a", "b", "b/loop!loop", "b/c", "b/c/d", "b/c!", "bad!", "z"}; !slices.Equal(got, want) {
		t.Errorf("walked %q, want %q", got, want)
	}

	stop := errors.New("stop")
	if err := fs.Walk(tree(), fs.Ref{Inode: 1}, func(v fs.Visit) error {
		if v.Path == "b/c/d" {
			return stop
		}
		return nil
	}); err != stop {
		t.Errorf("the callback's error became %v", err)
	}

	deep := fake{}
	for i := range uint64(800) {
		deep[i+10] = []fs.Entry{entry("d", i+11)}
	}
	n, refused := 0, 0
	if err := fs.Walk(deep, fs.Ref{Inode: 10}, func(v fs.Visit) error {
		n++
		if errors.Is(v.Err, fs.ErrTooDeep) {
			refused++
		}
		return nil
	}); err != nil || n != fs.MaxDepth+1 || refused != 1 {
		t.Errorf("800 levels: %d visits, %d refused, %v", n, refused, err)
	}
}

type content struct{ size int64 }

func (c content) Size() int64 { return c.size }

func (c content) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), c.size-off))
	if off+int64(n) == c.size {
		return n, io.EOF
	}
	return n, nil
}

func (c content) Extents(off, n int64, fn func(fs.Extent) error) error {
	for i := off; i < off+n; i++ {
		if err := fn(fs.Extent{Off: i, Len: 1, Kind: fs.Kind(i % 4)}); err != nil {
			return err
		}
	}
	return nil
}

func TestDevice(t *testing.T) {
	d := fs.Device(content{10})
	if n, err := d.ReadAt(make([]byte, 10), 0); n != 10 || err != nil {
		t.Errorf("all of it: %d, %v", n, err)
	}
	if n, err := d.ReadAt(make([]byte, 2), 9); n != 0 || !errors.Is(err, lun.ErrOutOfRange) {
		t.Errorf("beyond the end: %d, %v", n, err)
	}
	if _, err := d.WriteAt([]byte{1}, 0); !errors.Is(err, lun.ErrReadOnly) {
		t.Error(err)
	}
	var holes string
	if err := d.(lun.Mapper).Extents(0, 8, func(e lun.Extent) error {
		holes += fmt.Sprint(e.Hole, " ")
		return nil
	}); err != nil || holes != "false true true false false true true false " {
		t.Errorf("%v, %v", holes, err)
	}
}

func TestGoodName(t *testing.T) {
	for name, want := range map[string]bool{"a": true, "...": true, "\xff": true, "": false, ".": false, "..": false, "a/b": false, "a\x00": false,
		string(make([]byte, fs.MaxName+1)): false} {
		if fs.GoodName(name) != want {
			t.Errorf("%q", name)
		}
	}
}
