package btrfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	lunfs "github.com/cleave-san/cleave/lun/fs"
	files "github.com/cleave-san/cleave/lun/fs/btrfs"
	"github.com/cleave-san/cleave/lun/open"
	store "github.com/cleave-san/cleave/lun/store/btrfs"
)

// mounted has the kernel mount an image until the test's cleanup or unmount.
func mounted(t *testing.T, image, options string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	run(t, "mount", "-o", "loop,"+options, image, dir)
	done := false
	unmount = func() {
		if !done {
			done = true
			run(t, "umount", dir)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func needKernel(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root mounts")
	}
	if b, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(b), "btrfs") {
		t.Skip("this kernel has no Btrfs")
	}
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		t.Skip("btrfs-progs is not installed")
	}
}

// TestKernel compares file systems of all kinds with what the kernel shows of them:
// names, types, owners, modes, times, links, attributes, content.
func TestKernel(t *testing.T) {
	needKernel(t)
	seeds := 6
	if s := os.Getenv("CLEAVE_BTRFS_IMAGES"); s != "" {
		seeds, _ = strconv.Atoi(s)
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(uint64(seed), 5))
			image := filepath.Join(t.TempDir(), "image")
			mkfs := []string{"-q", "--csum", []string{"crc32c", "xxhash", "sha256"}[seed%3], "-n", []string{"16k", "4k", "64k"}[rnd.IntN(3)],
				"-m", []string{"dup", "single"}[rnd.IntN(2)], "-d", []string{"single", "dup"}[rnd.IntN(2)]}
			if rnd.IntN(2) == 0 {
				mkfs = append(mkfs, "-O", "^no-holes")
			}
			f, err := os.Create(image)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Truncate(300<<20), f.Close()); err != nil {
				t.Fatal(err)
			}
			run(t, "mkfs.btrfs", append(mkfs, image)...)
			dir, unmount := mounted(t, image, "compress-force="+[]string{"none", "zlib", "zstd", "lzo"}[(seed+1)%4])
			run(t, "btrfs", "subvolume", "create", filepath.Join(dir, "@"))
			run(t, "btrfs", "subvolume", "create", filepath.Join(dir, "@/inner"))
			populate(t, rnd, filepath.Join(dir, "@"))
			run(t, "btrfs", "subvolume", "snapshot", "-r", filepath.Join(dir, "@"), filepath.Join(dir, "snap"))
			populate(t, rnd, filepath.Join(dir, "@"))
			unmount()

			// Read before the kernel sees it again, then as it shows it.
			dev, err := open.File(image)
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			got := describe(t, openFS(t, dev, ""))
			dir, _ = mounted(t, image, "ro")
			want := describeOS(t, dir)
			for path, w := range want {
				if got[path] != w {
					t.Errorf("%s: %s\nwant %s", path, got[path], w)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d files, want %d", len(got), len(want))
			}
		})
	}
}

// populate makes files of all kinds, over ones that are there.
func populate(t *testing.T, rnd *rand.Rand, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	data := func(n int) []byte {
		b := make([]byte, n)
		for i := 0; i < n; { // some of it compresses
			k := min(n-i, 1+rnd.IntN(9000))
			c := byte(rnd.Uint32())
			for j := range k {
				if b[i+j] = c; k%3 == 0 {
					b[i+j] = byte(rnd.Uint32())
				}
			}
			i += k
		}
		return b
	}
	dirs := []string{dir, filepath.Join(dir, "inner")}
	for i := range 40 {
		in := dirs[rnd.IntN(len(dirs))]
		name := filepath.Join(in, fmt.Sprintf("%c%d", 'a'+rnd.IntN(3), rnd.IntN(25)))
		if rnd.IntN(20) == 0 {
			name += strings.Repeat("é", 100)
		}
		if st, err := os.Lstat(name); err == nil && st.IsDir() {
			continue
		}
		must(os.RemoveAll(name))
		switch rnd.IntN(9) {
		case 0:
			must(os.Mkdir(name, 0o750))
			dirs = append(dirs, name)
		case 1:
			must(os.Symlink(strings.Repeat("x/", 1+rnd.IntN(300)), name))
		case 2:
			must(unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(5, 300))))
		case 3:
			must(unix.Mkfifo(name, 0o644))
		case 4: // inline
			must(os.WriteFile(name, data(rnd.IntN(3000)), 0o4755))
			must(unix.Setxattr(name, "user.one", data(1+rnd.IntN(3000)), 0))
			must(unix.Setxattr(name, "trusted.two", nil, 0))
		case 5: // with holes
			f, err := os.Create(name)
			must(err)
			for range 5 {
				_, err := f.WriteAt(data(1+rnd.IntN(100000)), rnd.Int64N(3<<20))
				must(err)
			}
			must(f.Truncate(rnd.Int64N(4 << 20)))
			must(f.Close())
		case 6: // preallocated
			f, err := os.Create(name)
			must(err)
			must(unix.Fallocate(int(f.Fd()), uint32(rnd.IntN(2)), rnd.Int64N(1<<20), 1+rnd.Int64N(1<<20)))
			_, err = f.WriteAt(data(70000), rnd.Int64N(1<<20))
			must(err)
			must(f.Close())
		case 7:
			must(os.WriteFile(name, data(rnd.IntN(2<<20)), 0o640))
			must(os.Link(name, name+".link"+fmt.Sprint(i, rnd.Uint32())))
			must(os.Chown(name, rnd.IntN(100000), rnd.IntN(100000)))
		default: // many small writes: overwritten extents
			f, err := os.Create(name)
			must(err)
			for range 30 {
				_, err := f.WriteAt(data(1+rnd.IntN(20000)), rnd.Int64N(300000))
				must(err)
				if rnd.IntN(5) == 0 {
					must(f.Sync())
				}
			}
			must(f.Close())
		}
	}
	f, err := os.Open(dir)
	must(err)
	defer f.Close()
	must(unix.Syncfs(int(f.Fd())))
}

// describe is a line for each file below the root.
func describe(t *testing.T, x lunfs.FS) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := lunfs.Walk(x, x.Root(), func(v lunfs.Visit) error {
		if v.Err != nil {
			return fmt.Errorf("%s: %w", v.Path, v.Err)
		}
		st := v.Stat
		line := fmt.Sprintf("%v %o %d:%d %d %v", st.Type, st.Mode, st.UID, st.GID, st.Size, st.Modified.UnixNano())
		if st.Ref.Inode != 2 { // which the kernel makes up
			line += fmt.Sprintf(" links %d changed %v ino %d dev %d:%d", st.Links, st.Changed.UnixNano(), st.Ref.Inode, st.Major, st.Minor)
		} else {
			line = "no subvolume"
		}
		switch st.Type {
		case lunfs.Regular:
			f, err := x.Open(st.Ref)
			if err != nil {
				return err
			}
			b := make([]byte, f.Size())
			if _, err := io.ReadFull(io.NewSectionReader(f, 0, f.Size()), b); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("%s: %w", v.Path, err)
			}
			line += sumOf(b)
			// Once more, in pieces.
			for range 20 {
				if len(b) == 0 {
					break
				}
				off := rand.IntN(len(b))
				p := make([]byte, rand.IntN(len(b)-off+1))
				if _, err := f.ReadAt(p, int64(off)); err != nil {
					return err
				}
				if !bytes.Equal(p, b[off:off+len(p)]) {
					return fmt.Errorf("%s: %d bytes at %d read otherwise than as a part", v.Path, len(p), off)
				}
			}
		case lunfs.Symlink:
			target, err := x.Readlink(st.Ref)
			if err != nil {
				return err
			}
			line += " -> " + target
		case lunfs.Directory:
			n := 0
			if err := x.List(st.Ref, 0, func(e lunfs.Entry) error {
				n++
				r, err := x.Lookup(st.Ref, e.Name)
				if err == nil && r != e.Ref {
					err = fmt.Errorf("%s: %s is %v by its name and %v in the list", v.Path, e.Name, r, e.Ref)
				}
				return err
			}); err != nil {
				return err
			}
			line += fmt.Sprintf(" %d entries", n)
		}
		var attrs []string
		if err := x.Xattrs(st.Ref, func(name string, value []byte) error {
			attrs = append(attrs, name+sumOf(value))
			return nil
		}); err != nil {
			return err
		}
		out[v.Path] = line + attributes(attrs)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func describeOS(t *testing.T, root string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if rel == "." {
			rel = ""
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
		typ := lunfs.TypeOf(st.Mode)
		line := fmt.Sprintf("%v %o %d:%d %d %v", typ, st.Mode&0o7777, st.Uid, st.Gid, st.Size, st.Mtim.Nano())
		line += fmt.Sprintf(" links %d changed %v ino %d dev %d:%d", st.Nlink, st.Ctim.Nano(), st.Ino, major, minor)
		if st.Ino == 2 {
			out[rel] = "no subvolume 0 entries"
			return nil
		}
		switch typ {
		case lunfs.Regular:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += sumOf(b)
		case lunfs.Symlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case lunfs.Directory:
			list, err := os.ReadDir(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d entries", len(list))
		}
		names := make([]byte, 64<<10)
		n, err := unix.Llistxattr(path, names)
		if err != nil {
			return err
		}
		var attrs []string
		for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
			if name == "" {
				continue
			}
			b := make([]byte, 64<<10)
			n, err := unix.Lgetxattr(path, name, b)
			if err != nil {
				return err
			}
			attrs = append(attrs, name+sumOf(b[:n]))
		}
		out[rel] = line + attributes(attrs)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLogTree: what only a log tree has is not left out silently: the subvolume is
// refused, its snapshot is not.
func TestLogTree(t *testing.T) {
	needKernel(t)
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 200<<20)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.btrfs", "-q", image)
	dir, _ := mounted(t, image, "rw")
	run(t, "btrfs", "subvolume", "create", filepath.Join(dir, "@"))
	run(t, "btrfs", "subvolume", "snapshot", filepath.Join(dir, "@"), filepath.Join(dir, "snap"))
	run(t, "sync", "-f", dir)
	if err := os.WriteFile(filepath.Join(dir, "@", "late"), []byte("in the log"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", filepath.Join(dir, "@", "late")) // fsync
	cut := image + ".cut"
	run(t, "cp", image, cut)
	dev, err := open.File(cut)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	f, err := store.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[uint64]error{256: lunfs.ErrDirty, 257: nil} {
		if _, err := files.Open(f, id); !errors.Is(err, want) {
			t.Errorf("subvolume %d: %v, want %v", id, err, want)
		}
	}
}
