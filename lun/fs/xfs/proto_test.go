package xfs_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/xfs"
)

// prototype is what mkfs.xfs is told to put into a file system, and what a reader
// should then say of it.
type prototype struct {
	text bytes.Buffer
	want map[string]string
}

func (p *prototype) add(dir, name, how, content, want string) {
	fmt.Fprintf(&p.text, "%s %s %s\n", name, how, content)
	p.want[dir+name] = want
}

// newPrototype has directories of all kinds, symbolic links short and long, and
// files of both; from is a file to fill them from.
func newPrototype(tb testing.TB, from string) *prototype {
	b, err := os.ReadFile(from)
	if err != nil {
		tb.Fatal(err)
	}
	p := &prototype{want: map[string]string{"": "directory 0755 0:0 links=7"}}
	p.text.WriteString("/dev/null\n0 0\nd--755 0 0\n")
	p.add("", "file", "---640 5 70000", from, fmt.Sprintf("file 0640 5:70000 links=1 %x", b))
	p.add("", "setuid", "-u-755 0 0", "/dev/null", "file 4755 0:0 links=1 ")
	p.add("", "device", "b--600 0 0 8 17", "", "block device 0600 0:0 links=1 8,17")
	p.add("", "pipe", "p--666 1 2", "", "pipe 0666 1:2 links=1")
	for _, n := range []int{1, 60, 400, 1000} {
		target := strings.Repeat("t", n)
		p.add("", fmt.Sprintf("link%d", n), "l--777 0 0", target, fmt.Sprintf("symlink 0777 0:0 links=1 %q", target))
	}
	for _, n := range []int{0, 3, 40, 200, 3000} {
		dir := fmt.Sprintf("dir%d", n)
		p.add("", dir, "d--711 3 4", "", "directory 0711 3:4 links=2")
		for i := range n {
			p.add(dir+"/", fmt.Sprintf("%0*d", 4+i%60, i), "---600 0 0", "/dev/null", "file 0600 0:0 links=1 ")
		}
		p.text.WriteString("$\n")
	}
	p.text.WriteString("$\n")
	return p
}

// describe says of files what a prototype does.
func describe(f fs.FS) (map[string]string, error) {
	out := make(map[string]string)
	err := fs.Walk(f, f.Root(), func(v fs.Visit) error {
		if v.Err != nil {
			return v.Err
		}
		st := v.Stat
		line := fmt.Sprintf("%v %04o %d:%d links=%d", st.Type, st.Mode, st.UID, st.GID, st.Links)
		switch st.Type {
		case fs.BlockDevice:
			line += fmt.Sprintf(" %d,%d", st.Major, st.Minor)
		case fs.Symlink:
			target, err := f.Readlink(st.Ref)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", target)
		case fs.Regular:
			c, err := f.Open(st.Ref)
			if err != nil {
				return err
			}
			b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", b)
		}
		out[v.Path] = line
		return nil
	})
	return out, err
}

// made is a file system that mkfs.xfs filled, without any kernel.
func made(tb testing.TB, p *prototype, options string) lun.Device {
	tb.Helper()
	path := tb.TempDir() + "/prototype"
	if err := os.WriteFile(path, p.text.Bytes(), 0o600); err != nil {
		tb.Fatal(err)
	}
	args := append([]string{"mkfs.xfs", "-q", "-f", "-p", path}, strings.Fields(options)...)
	return fstest.Device(tb, fstest.Image(tb, tb.TempDir(), 320<<20, args...))
}

// versions are ways to make a file system that not every kernel mounts. Of version
// 5, inodes hold all targets: mkfs.xfs 6.1 writes others without their headers.
var versions = []string{
	"-m crc=0",
	"-m crc=0 -n ftype=0 -i size=256 -b size=512",
	"-m crc=0 -n ftype=1,size=16384 -b size=1024 -i size=512",
	"-m crc=0 -b size=65536",
	"-m crc=1 -b size=65536 -i size=2048",
	"-b size=16384 -s size=4096 -i size=2048",
	"-n size=65536 -l version=2,su=256k -i size=2048",
}

// TestPrototype: file systems that mkfs.xfs filled are read as it was told to.
func TestPrototype(t *testing.T) {
	p := newPrototype(t, "proto_test.go")
	for _, options := range versions {
		t.Run(options, func(t *testing.T) {
			f, err := xfs.Open(made(t, p, options))
			if err != nil {
				t.Fatal(err)
			}
			got, err := describe(f)
			if err != nil {
				t.Fatal(err)
			}
			if want := "v5"; strings.Contains(options, "crc=0") == (f.Info().Variant == want) {
				t.Errorf("variant %s", f.Info().Variant)
			}
			if maps.Equal(got, p.want) {
				return
			}
			for path, want := range p.want {
				if got[path] != want {
					t.Errorf("%q is %.100q, want %.100q", path, got[path], want)
				}
			}
			t.Errorf("%d files, want %d", len(got), len(p.want))
		})
	}
}

// TestAttributes: attributes that xfs_db set, in inodes, in leaves below nodes and
// in blocks of their own.
func TestAttributes(t *testing.T) {
	if out, code := fstest.Command(t, "xfs_db", "-V"); code != 0 {
		t.Fatal(out)
	}
	p := &prototype{}
	p.text.WriteString("/dev/null\n0 0\nd--755 0 0\n")
	for _, n := range []string{"1", "20", "400"} {
		fmt.Fprintf(&p.text, "file%s ---644 0 0 /dev/null\n", n)
	}
	p.text.WriteString("$\n")
	for _, options := range []string{"-m crc=0 -i size=256", "-m crc=0 -b size=1024", "-b size=1024", "-b size=65536"} {
		t.Run(options, func(t *testing.T) {
			path := t.TempDir() + "/prototype"
			if err := os.WriteFile(path, p.text.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			image := fstest.Image(t, t.TempDir(), 320<<20, append([]string{"mkfs.xfs", "-q", "-f", "-p", path}, strings.Fields(options)...)...)
			for _, n := range []int{1, 20, 400} {
				wantAttributes(t, image, n)
			}
		})
	}
}

// wantAttributes sets n attributes of a file and reads them.
func wantAttributes(t *testing.T, image string, n int) {
	t.Helper()
	f, err := xfs.Open(fstest.Device(t, image))
	if err != nil {
		t.Fatal(err)
	}
	r, err := fs.Find(f, fmt.Sprintf("file%d", n))
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-x", "-c", fmt.Sprintf("inode %d", r.Inode)}
	var want, got []string
	set := func(flag, prefix, name string, size int) {
		args = append(args, "-c", fmt.Sprintf("attr_set -%s -v %d %s", flag, size, name))
		want = append(want, fmt.Sprintf("%s%s=%x", prefix, name, bytes.Repeat([]byte("v"), size)))
	}
	set("r", "trusted.", "rooted", 5)
	set("s", "security.", "secure", 15)
	for i := range n {
		set("u", "user.", fmt.Sprintf("%0*d", 5+i%60, i), 1+i%200)
	}
	if n > 1 {
		set("u", "user.", "large", 60000)
		set("r", "trusted.", "middle", 3000)
	}
	fstest.Run(t, "xfs_db", append(args, image)...)
	if f, err = xfs.Open(fstest.Device(t, image)); err != nil { // it kept what was there before
		t.Fatal(err)
	}
	if err := f.Xattrs(r, func(name string, value []byte) error {
		got = append(got, fmt.Sprintf("%s=%x", name, value))
		return nil
	}); err != nil {
		t.Error(err)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%d attributes, want %d: %.300q", len(got), len(want), got)
	}
}
