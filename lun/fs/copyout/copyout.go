// Package copyout copies files out of a file system that is read (package fs) to
// one of this host: owners, modes, times, hard links, extended attributes and
// holes with them.
//
// The source is a stranger's. Nothing is ever written through a name that this
// copy didn't make itself: every file is made anew, by a descriptor of its
// directory, and no symbolic link is followed, so that two entries of one name
// can't lead out of the destination. Nothing that exists is touched.
package copyout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/fs"
)

// chunk is how much is read at once, in bytes.
const chunk = 4 << 20

// Options of Copy.
type Options struct {
	// Recursive copies directories with their content; without it one is
	// fs.ErrNotFile.
	Recursive bool
	// Failed is called for each file that can't be copied, or not with all it
	// has, with its path below the start ("" for that). An error that it returns
	// ends the copy.
	Failed func(path string, err error) error
	// Progress is called with the bytes of files copied so far. It may be nil.
	Progress func(done int64)
}

// Result is what was copied.
type Result struct {
	Files int64 // of all types, directories included
	Bytes int64 // of files, without holes
	// Owners says that nobody's owner could be kept: that takes root.
	Owners bool
}

// Copy copies a file, or a directory and what is below it, to name in dir, which
// is open. The error is ctx's, or Failed's.
func Copy(ctx context.Context, f fs.FS, start fs.Ref, dir *os.File, name string, o Options) (Result, error) {
	c := &copier{ctx: ctx, f: f, o: o, top: int(dir.Fd()), made: make(map[fs.Ref]string), root: os.Geteuid() == 0}
	st, err := f.Stat(start)
	err = c.one(int(dir.Fd()), name, "", st, err)
	c.r.Owners = !c.root
	return c.r, err
}

type copier struct {
	ctx  context.Context
	f    fs.FS
	o    Options
	r    Result
	top  int               // descriptor of the destination
	made map[fs.Ref]string // files of several names: one, below top
	way  []fs.Ref          // directories from the start to here
	path []string          // names below top
	root bool
	buf  []byte
}

// one copies a file as name in the directory at. path is for messages.
func (c *copier) one(at int, name, path string, st fs.Stat, err error) error {
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	c.path = append(c.path, name)
	defer func() { c.path = c.path[:len(c.path)-1] }()
	if err == nil {
		if err = c.make(at, name, path, st); err == nil {
			c.r.Files++
		}
	}
	var end *ended
	switch {
	case errors.As(err, &end):
		return end.error
	case err != nil:
		return c.o.Failed(path, err)
	}
	return nil
}

// ended is an error that is not a file's.
type ended struct{ error }

func (c *copier) make(at int, name, path string, st fs.Stat) error {
	if st.Links > 1 && st.Type != fs.Directory {
		if first, ok := c.made[st.Ref]; ok {
			return exists(name, unix.Linkat(c.top, first, at, name, 0))
		}
	}
	var err error
	switch st.Type {
	case fs.Directory:
		return c.directory(at, name, path, st)
	case fs.Regular:
		err = c.regular(at, name, st)
	case fs.Symlink:
		var target string
		if target, err = c.f.Readlink(st.Ref); err == nil {
			err = exists(name, unix.Symlinkat(target, at, name))
		}
	default:
		err = exists(name, unix.Mknodat(at, name, device(st.Type)|0o600, int(unix.Mkdev(st.Major, st.Minor))))
	}
	if err != nil {
		return err
	}
	if st.Links > 1 {
		way := c.path[0]
		for _, n := range c.path[1:] {
			way += "/" + n
		}
		c.made[st.Ref] = way
	}
	if st.Type == fs.Regular {
		return nil // described by its descriptor
	}
	return c.describeAt(at, name, st)
}

func device(t fs.Type) uint32 {
	switch t {
	case fs.CharDevice:
		return unix.S_IFCHR
	case fs.BlockDevice:
		return unix.S_IFBLK
	case fs.Socket:
		return unix.S_IFSOCK
	}
	return unix.S_IFIFO
}

func exists(name string, err error) error {
	if err != nil {
		return &os.PathError{Op: "making", Path: name, Err: err}
	}
	return nil
}

func (c *copier) directory(at int, name, path string, st fs.Stat) error {
	switch {
	case !c.o.Recursive:
		return fs.ErrNotFile
	case len(c.way) >= fs.MaxDepth || slices.Contains(c.way, st.Ref):
		return fs.ErrTooDeep
	}
	if err := exists(name, unix.Mkdirat(at, name, 0o700)); err != nil {
		return err
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return exists(name, err)
	}
	defer unix.Close(fd)
	c.way = append(c.way, st.Ref)
	defer func() { c.way = c.way[:len(c.way)-1] }()
	if path != "" {
		path += "/"
	}
	var own error
	err = fs.ListStat(c.f, st.Ref, 0, func(e fs.Entry, s fs.Stat, err error) error {
		own = c.one(fd, e.Name, path+e.Name, s, err)
		return own
	})
	if own != nil {
		return &ended{own}
	}
	return errors.Join(err, c.describe(fd, st))
}

func (c *copier) regular(at int, name string, st fs.Stat) (err error) {
	var src fs.File
	if st.Size != 0 { // an empty file costs the reader nothing more than its description
		if src, err = c.f.Open(st.Ref); err != nil {
			return err
		}
	}
	fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return exists(name, err)
	}
	dst := os.NewFile(uintptr(fd), name)
	defer func() { err = errors.Join(err, dst.Close()) }()
	if src != nil {
		if err := c.content(dst, src); err != nil {
			return err
		}
	}
	return c.describe(fd, st)
}

// content copies what is not a hole.
func (c *copier) content(dst *os.File, src fs.File) error {
	if c.buf == nil {
		c.buf = make([]byte, chunk)
	}
	size := src.Size()
	copied := int64(0)
	// Runs that follow each other are read at once.
	from, to := int64(0), int64(0)
	flush := func() error {
		for ; from < to; from += int64(len(c.buf)) {
			if c.ctx.Err() != nil {
				return &ended{c.ctx.Err()}
			}
			p := c.buf[:min(int64(len(c.buf)), to-from)]
			if n, err := src.ReadAt(p, from); n < len(p) {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
			if _, err := dst.WriteAt(p, from); err != nil {
				return err
			}
			copied = from + int64(len(p))
			c.r.Bytes += int64(len(p))
			if c.o.Progress != nil {
				c.o.Progress(c.r.Bytes)
			}
		}
		return nil
	}
	err := src.Extents(0, size, func(e fs.Extent) error {
		if e.Kind == fs.Hole || e.Kind == fs.Unwritten {
			return nil
		}
		if e.Off != to {
			if err := flush(); err != nil {
				return err
			}
			from = e.Off
		}
		to = e.Off + e.Len
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err == nil && copied < size {
		err = dst.Truncate(size)
	}
	return err
}

// describe gives what is open its owner, attributes, mode and times, in an
// order in which none takes another away.
func (c *copier) describe(fd int, st fs.Stat) error {
	var errs []error
	if c.root {
		errs = append(errs, wrap("owner", unix.Fchown(fd, int(st.UID), int(st.GID))))
	}
	errs = append(errs, c.xattrs(st, func(name string, value []byte) error {
		return wrap(fmt.Sprintf("attribute %.100q", name), unix.Fsetxattr(fd, name, value, 0))
	}))
	errs = append(errs, wrap("mode", unix.Fchmod(fd, uint32(st.Mode))))
	errs = append(errs, wrap("times", futimens(fd, times(st))))
	return errors.Join(errs...)
}

// describeAt is describe for what can't be opened. A symbolic link has no mode.
func (c *copier) describeAt(at int, name string, st fs.Stat) error {
	var errs []error
	if c.root {
		errs = append(errs, wrap("owner", unix.Fchownat(at, name, int(st.UID), int(st.GID), unix.AT_SYMLINK_NOFOLLOW)))
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", at, name)
	errs = append(errs, c.xattrs(st, func(name string, value []byte) error {
		return wrap(fmt.Sprintf("attribute %.100q", name), unix.Lsetxattr(path, name, value, 0))
	}))
	if st.Type != fs.Symlink {
		errs = append(errs, wrap("mode", unix.Fchmodat(at, name, uint32(st.Mode), 0)))
	}
	errs = append(errs, wrap("times", unix.UtimesNanoAt(at, name, times(st), unix.AT_SYMLINK_NOFOLLOW)))
	return errors.Join(errs...)
}

func (c *copier) xattrs(st fs.Stat, fn func(name string, value []byte) error) error {
	if st.NoXattrs {
		return nil
	}
	return c.f.Xattrs(st.Ref, fn)
}

// futimens is utimensat(2) of what is open: without a path, since a walk through
// /proc costs more than the rest of a small file.
func futimens(fd int, ts []unix.Timespec) error {
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts[0])), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

func times(st fs.Stat) []unix.Timespec {
	one := func(t time.Time) unix.Timespec {
		if t.IsZero() {
			return unix.Timespec{Nsec: unix.UTIME_OMIT}
		}
		return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	}
	return []unix.Timespec{one(st.Accessed), one(st.Modified)}
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("its %s is not kept: %w", what, err)
	}
	return nil
}
