package fstest

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/fs"
)

// Host reads what the kernel shows below dir, through no symbolic link.
func Host(dir string) (Tree, error) {
	out := make(Tree)
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")
		l, err := hostLine(path)
		if err != nil {
			return fmt.Errorf("%q: %w", rel, err)
		}
		out[rel] = l
		return nil
	})
	return out, err
}

func hostLine(path string) (l Line, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return l, err
	}
	kind, target := fs.TypeOf(st.Mode), ""
	if kind == fs.Symlink {
		if target, err = os.Readlink(path); err != nil {
			return l, err
		}
	}
	rdev := uint64(0)
	if kind == fs.CharDevice || kind == fs.BlockDevice {
		rdev = st.Rdev
	}
	l.Inode = st.Ino
	l.What = what(kind, uint16(st.Mode&0o7777), st.Uid, st.Gid, uint32(st.Nlink), st.Size, unix.Major(rdev), unix.Minor(rdev), target)
	l.Times = times(time.Unix(st.Mtim.Unix()), time.Unix(st.Ctim.Unix()))
	if l.Xattrs, err = hostXattrs(path); err != nil {
		return l, err
	}
	if kind != fs.Regular {
		return l, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return l, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return l, err
	}
	l.Content = fmt.Sprintf("%x", h.Sum(nil))
	if l.Map, err = fiemap(f, st.Size); errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		err = nil // FUSE has none
	}
	return l, err
}

func hostXattrs(path string) (string, error) {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var xs []string
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		xs = append(xs, fmt.Sprintf("%s=%x", name, sha256.Sum256(value[:n])))
	}
	slices.Sort(xs)
	return strings.Join(xs, "\n"), nil
}

// fiemap asks for a file's extents: Documentation/filesystems/fiemap.rst.
func fiemap(f *os.File, size int64) (string, error) {
	const (
		request   = 0xc020660b // FS_IOC_FIEMAP
		header    = 32
		entry     = 56
		count     = 256
		encoded   = 0x8 | 0x100 | 0x200 // FIEMAP_EXTENT_ENCODED, _NOT_ALIGNED, _DATA_INLINE
		unwritten = 0x800
		last      = 0x1
	)
	le := binary.LittleEndian
	var m mapText
	for from := int64(0); from < size; {
		b := make([]byte, header+count*entry)
		le.PutUint64(b, uint64(from))
		le.PutUint64(b[8:], uint64(size-from))
		le.PutUint32(b[24:], count)
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&b[0]))); e != 0 {
			return "", fmt.Errorf("FIEMAP: %w", e)
		}
		n := int(le.Uint32(b[20:]))
		if n == 0 {
			break
		}
		for i := range n {
			x := b[header+i*entry:]
			off, dev, length, flags := int64(le.Uint64(x)), int64(le.Uint64(x[8:])), int64(le.Uint64(x[16:])), le.Uint32(x[40:])
			if cut := from - off; cut > 0 {
				off, dev, length = off+cut, dev+cut, length-cut
			}
			length = min(length, size-off)
			if flags&encoded != 0 {
				length = size - off // of inline data nobody is exact
			}
			if length > 0 {
				m.add(off, dev, length, flags&unwritten != 0, flags&encoded != 0)
				from = off + length
			}
			if flags&last != 0 {
				return m.String(), nil
			}
		}
	}
	return m.String(), nil
}

// Allocated is the space that a file of this host takes, in bytes.
func Allocated(st os.FileInfo) int64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return -1
}
