package fstest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Load does random things to files below a directory. The same seed does the
// same, unless the file system fills up: what fails for lack of space, or
// because the file system has no such thing, is passed over.
type Load struct {
	dir   string
	r     *rand.Rand
	files []string
	dirs  []string
	n     int
	// Magic is put at the beginning of some blocks: what a journal has to escape.
	Magic []byte
	// Largest bounds what one file is written to, in bytes; default 4 MiB.
	Largest int64
	// Sync has some files synced.
	Sync bool
}

// NewLoad makes a load for dir, which exists.
func NewLoad(dir string, seed uint64) *Load {
	return &Load{dir: dir, r: rand.New(rand.NewPCG(seed, 7)), dirs: []string{dir}, Largest: 4 << 20}
}

// Run does n things, or until ctx ends.
func (l *Load) Run(ctx context.Context, n int) error {
	for i := 0; i < n && ctx.Err() == nil; i++ {
		if err := l.step(); err != nil && !harmless(err) {
			return err
		}
	}
	return nil
}

func harmless(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.ENOTSUP, unix.ENOTEMPTY, unix.E2BIG, unix.EMLINK, unix.ENAMETOOLONG, unix.EFBIG,
		unix.EINVAL, unix.EXDEV, unix.ERANGE, unix.EPERM, unix.EILSEQ, unix.ENOSYS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// name is a new one, of any bytes, often of the same length.
func (l *Load) name() string {
	l.n++
	s := fmt.Sprintf("f%d", l.n)
	switch l.r.IntN(8) {
	case 0:
		s += strings.Repeat("x", l.r.IntN(250-len(s)))
	case 1:
		s += "\xffé☃ \n"
	}
	return filepath.Join(pick(l.r, l.dirs), s)
}

func (l *Load) step() error {
	r := l.r
	if len(l.files) == 0 {
		return l.create()
	}
	switch k := r.IntN(100); {
	case k < 30:
		return l.create()
	case k < 45:
		return l.write(pick(r, l.files))
	case k < 50:
		return unix.Truncate(pick(r, l.files), r.Int64N(l.Largest))
	case k < 53:
		return l.allocate(pick(r, l.files))
	case k < 63:
		return l.remove()
	case k < 70:
		return l.rename()
	case k < 75:
		d := l.name()
		if err := os.Mkdir(d, 0o700|os.FileMode(r.IntN(0o100))); err != nil {
			return err
		}
		if len(l.dirs) < 40 {
			l.dirs = append(l.dirs, d)
		}
		return nil
	case k < 79:
		return os.Symlink(strings.Repeat("t/", 1+r.IntN(20*(1+r.IntN(40)))), l.name())
	case k < 83:
		return l.link()
	case k < 85:
		return unix.Mknod(l.name(), pick(r, []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK})|0o640,
			int(unix.Mkdev(uint32(r.IntN(4095)), uint32(r.IntN(1<<20)))))
	case k < 92:
		return l.xattr()
	case k < 96:
		f := pick(r, l.files)
		return errors.Join(os.Lchown(f, r.IntN(1<<17), r.IntN(1<<17)), unix.Chmod(f, uint32(r.IntN(0o10000))))
	case k < 98:
		at := time.Unix(r.Int64N(1<<33)-1<<31, r.Int64N(1e9))
		return os.Chtimes(pick(r, l.files), at, at)
	case k < 99:
		return l.crowd()
	case l.Sync:
		return syncFile(pick(r, l.files))
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (l *Load) create() error {
	name := l.name()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	l.files = append(l.files, name)
	defer f.Close()
	_, err = f.Write(l.data(l.r.IntN(1 << (4 + l.r.IntN(12)))))
	return err
}

func (l *Load) data(n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		b[i] = byte(l.r.Uint32())
	}
	if len(l.Magic) > 0 {
		for i := 0; i+4 <= n; i += 4096 {
			copy(b[i:], l.Magic)
		}
	}
	return b
}

// write writes anywhere in a file, which leaves holes.
func (l *Load) write(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	off := l.r.Int64N(l.Largest)
	if len(l.Magic) > 0 {
		off &^= 4095
	}
	for range 1 + l.r.IntN(6) {
		if _, err := f.WriteAt(l.data(1+l.r.IntN(20000)), off); err != nil {
			return err
		}
		off += int64(l.r.IntN(3)) * 8192
	}
	return nil
}

func (l *Load) allocate(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	mode := pick(l.r, []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE})
	return unix.Fallocate(int(f.Fd()), mode, l.r.Int64N(l.Largest), 1+l.r.Int64N(l.Largest/4))
}

func (l *Load) remove() error {
	i := l.r.IntN(len(l.files))
	name := l.files[i]
	l.files[i] = l.files[len(l.files)-1]
	l.files = l.files[:len(l.files)-1]
	return os.Remove(name)
}

func (l *Load) rename() error {
	i := l.r.IntN(len(l.files))
	name := l.name()
	if err := os.Rename(l.files[i], name); err != nil {
		return err
	}
	l.files[i] = name
	return nil
}

func (l *Load) link() error {
	name := l.name()
	if err := os.Link(pick(l.r, l.files), name); err != nil {
		return err
	}
	l.files = append(l.files, name)
	return nil
}

func (l *Load) xattr() error {
	f := pick(l.r, l.files)
	switch l.r.IntN(6) {
	case 0: // user::rw-, user:N:r--, group::r--, mask::r--, other::---
		acl := []byte{2, 0, 0, 0}
		for _, e := range [][3]uint32{{1, 6, ^uint32(0)}, {2, 4, l.r.Uint32N(1 << 16)}, {4, 4, ^uint32(0)}, {16, 4, ^uint32(0)}, {32, 0, ^uint32(0)}} {
			acl = append(acl, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
		}
		return unix.Setxattr(f, "system.posix_acl_access", acl, 0)
	case 1:
		return unix.Setxattr(f, "trusted.t", l.data(l.r.IntN(60)), 0)
	case 2:
		return unix.Setxattr(f, "security.s", l.data(l.r.IntN(60)), 0)
	case 3:
		return unix.Setxattr(f, "user.large", l.data(l.r.IntN(1<<(6+l.r.IntN(9)))), 0)
	}
	return unix.Setxattr(f, fmt.Sprintf("user.%d", l.r.IntN(5)), l.data(l.r.IntN(40)), 0)
}

// crowd makes a directory of many names, and takes some away again.
func (l *Load) crowd() error {
	d := l.name()
	if err := os.Mkdir(d, 0o755); err != nil {
		return err
	}
	n := 1 << l.r.IntN(11)
	for i := range n {
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("%0*d", 4+l.r.IntN(40), i)), nil, 0o600); err != nil {
			return err
		}
	}
	names, err := os.ReadDir(d)
	for _, e := range names {
		if l.r.IntN(3) == 0 {
			err = errors.Join(err, os.Remove(filepath.Join(d, e.Name())))
		}
	}
	return err
}
