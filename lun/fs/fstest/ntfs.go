package fstest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// NTFS3G mounts an image with NTFS-3G, in user space, and returns where, and what
// unmounts it and waits until all is written, at the latest at the test's end.
// It skips a test that has no NTFS-3G or may not mount.
func NTFS3G(tb testing.TB, image, options string) (dir string, unmount func()) {
	tb.Helper()
	if _, err := exec.LookPath("ntfs-3g"); err != nil {
		tb.Skip("needs ntfs-3g: make deps")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		tb.Skip("needs root and /dev/fuse, to mount")
	}
	dir = tb.TempDir()
	var out bytes.Buffer
	c := exec.Command("ntfs-3g", "-o", "no_detach,streams_interface=xattr,"+options, image, dir)
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		tb.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		Run(tb, "umount", dir)
		if err := <-ended; err != nil {
			tb.Errorf("ntfs-3g: %v: %s", err, out.Bytes())
		}
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		if isMount(dir) {
			tb.Cleanup(unmount)
			return dir, unmount
		}
		select {
		case err := <-ended:
			tb.Fatalf("ntfs-3g: %v: %s", err, out.Bytes())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			c.Process.Signal(syscall.SIGKILL)
			tb.Fatal("ntfs-3g did not mount")
		}
	}
}

func isMount(dir string) bool {
	b, err := os.ReadFile("/proc/self/mounts")
	return err == nil && strings.Contains(string(b), " "+dir+" ")
}

// FillNTFS puts a seeded load of some steps below dir, where NTFS-3G mounted a
// volume, and what such a load has none of: a file in thousands of places,
// compressed ones and a directory of many names.
func FillNTFS(tb testing.TB, dir string, seed uint64, steps int) {
	tb.Helper()
	l := NewLoad(dir, seed)
	l.Largest = 1 << 20
	if err := l.Run(tb.Context(), steps); err != nil {
		tb.Fatal(err)
	}
	scatter(tb, dir)
	compress(tb, dir)
	many := dir + "/many"
	must(tb, os.Mkdir(many, 0o755))
	for i := range 700 {
		must(tb, os.WriteFile(fmt.Sprintf("%s/Name %d é", many, i*7919%1000), nil, 0o644))
	}
}

func must(tb testing.TB, err error) {
	if err != nil && !errors.Is(err, unix.ENOSPC) {
		tb.Helper()
		tb.Fatal(err)
	}
}

// scatter writes two files by turns, with holes.
func scatter(tb testing.TB, dir string) {
	a, err := os.Create(dir + "/scattered")
	must(tb, err)
	defer a.Close()
	b, err := os.Create(dir + "/scattered too")
	must(tb, err)
	defer b.Close()
	for i := range 1000 {
		for _, f := range []*os.File{a, b} {
			_, err := f.WriteAt([]byte(fmt.Sprint(f.Name(), i)), int64(i)*8192)
			must(tb, err)
		}
	}
}

// compress makes files in a directory that is marked so, one of them changed in
// its middle.
func compress(tb testing.TB, dir string) {
	packed := dir + "/packed"
	must(tb, os.Mkdir(packed, 0o755))
	must(tb, unix.Setxattr(packed, "system.ntfs_attrib_be", []byte{0, 0, 0x08, 0}, 0)) // FILE_ATTRIBUTE_COMPRESSED
	for i := range 20 {
		var s strings.Builder
		for k := range i * 3000 {
			fmt.Fprintf(&s, "%d ", k%(i*i+1))
		}
		must(tb, os.WriteFile(filepath.Join(packed, fmt.Sprint(i)), []byte(s.String()), 0o644))
	}
	f, err := os.OpenFile(packed+"/hole", os.O_CREATE|os.O_WRONLY, 0o644)
	must(tb, err)
	defer f.Close()
	for _, at := range []int64{0, 300000, 900000} {
		_, err := f.WriteAt([]byte(strings.Repeat("some text ", 5000)), at)
		must(tb, err)
	}
}

// CrowdNTFS fills a volume with files of a cluster, takes some away and fills it with
// small ones again: until the MFT lies in so many places that it takes more than one
// record to say where.
func CrowdNTFS(tb testing.TB, dir string) {
	write := func(name string, size int) bool {
		err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o644)
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			tb.Fatal(err)
		}
		return err == nil
	}
	n := 0
	for ; write(fmt.Sprint("f", n), 900); n++ {
	}
	for i := 0; i < n; i += 3 {
		if err := os.Remove(fmt.Sprintf("%s/f%d", dir, i)); err != nil {
			tb.Fatal(err)
		}
	}
	for i := 0; write(fmt.Sprint("g", i), 10+890*(i%5/4)); i++ {
	}
}

// CommonNTFS is what NTFS-3G and a reader both say. It shows all modes as 0777,
// rounds times before 1970, gives devices the size of what describes them, and
// keeps attributes for itself.
func CommonNTFS(tree Tree) Tree {
	out := make(Tree)
	for path, l := range tree {
		kind, _, _ := strings.Cut(l.What, " 0")
		n := Line{Times: l.Times, Inode: l.Inode, Content: l.Content}
		switch from := " links="; kind {
		case "directory":
			n.What = kind
		case "block device", "character device":
			n.What = kind + l.What[strings.Index(l.What, " dev="):]
		default:
			n.What = kind + l.What[strings.Index(l.What, from):]
		}
		if l.Times < "1970" {
			n.Times = l.Times[:17]
		}
		for x := range strings.Lines(l.Xattrs) {
			if !strings.HasPrefix(x, "user.ntfs-3g.") {
				n.Xattrs += strings.TrimSpace(x) + " "
			}
		}
		out[path] = n
	}
	return out
}
