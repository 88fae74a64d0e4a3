package fuse

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FileSystem is the type that such mounts have in mountinfo.
const FileSystem = "fuse.cleave"

// Mount is a file that has been mounted and is not served yet, or is.
type Mount struct {
	// Connection is the kernel's number for it (below /sys/fs/fuse/connections).
	Connection uint32

	fd       int
	path     string
	readOnly bool
	shared   bool        // the kernel checks who may what
	taken    atomic.Bool // fd is Serve's, or closed
}

// NewMount mounts on path, an existing regular file. Until Serve runs, whoever
// looks at it waits. It needs CAP_SYS_ADMIN. When the process dies, so does the
// connection; the mount stays until somebody unmounts it.
func NewMount(path string, readOnly bool) (*Mount, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/fuse: %w", err)
	}
	flags, mode := uintptr(unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC), unix.S_IFREG|0o600
	if readOnly {
		flags, mode = flags|unix.MS_RDONLY, unix.S_IFREG|0o400
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d", fd, mode, os.Geteuid(), os.Getegid())
	if err := unix.Mount("cleave", path, FileSystem, flags, data); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mounting FUSE on %s: %w", path, err)
	}
	undo := func(err error) (*Mount, error) {
		unix.Close(fd)
		return nil, errors.Join(err, Unmount(path))
	}
	number, err := connectionAt(path)
	if err != nil {
		return undo(err)
	}
	return &Mount{Connection: number, fd: fd, path: path, readOnly: readOnly}, nil
}

// Close ends the connection and unmounts. Whoever still uses the file gets errors,
// and Serve returns.
func (m *Mount) Close() error {
	err := Abort(m.Connection)
	if errors.Is(err, unix.EPERM) {
		err = nil // an ordinary user: the end of the process does it
	}
	err = errors.Join(err, Unmount(m.path))
	if !m.taken.Swap(true) {
		err = errors.Join(err, unix.Close(m.fd))
	}
	return err
}

// Unmount takes a mount away at once, whether it is in use or not. None there is
// success.
func Unmount(path string) error {
	if os.Geteuid() != 0 {
		return fusermountOff(path, "-z")
	}
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmounting %s: %w", path, err)
}

// Mounted reports whether anything is mounted at path.
func Mounted(path string) (bool, error) {
	_, err := connectionAt(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// connectionAt is the number of the connection that is mounted at path: the
// minor of its device (fs/fuse/control.c). Asking the file itself would wait
// for an answer that nobody gives yet.
func connectionAt(path string) (uint32, error) {
	w, err := mountinfo(path)
	if err != nil {
		return 0, err
	}
	if w == nil {
		return 0, fmt.Errorf("%s is not among the mounts: %w", path, fs.ErrNotExist)
	}
	_, text, _ := strings.Cut(w[2], ":")
	number, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("mountinfo of %s: %w", path, err)
	}
	return uint32(number), nil
}

// mountAt is the type of what is mounted at path.
func mountAt(path string) (system string, found bool, err error) {
	w, err := mountinfo(path)
	if err != nil || w == nil {
		return "", false, err
	}
	if i := slices.Index(w, "-"); i > 0 && i+1 < len(w) {
		system = w[i+1]
	}
	return system, true, nil
}

// mountinfo are the fields of the uppermost mount at path, nil if there is none.
func mountinfo(path string) (found []string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// proc_pid_mountinfo(5): ID, parent, major:minor, root, mount point, …, "-", type.
		if w := strings.Fields(lines.Text()); len(w) >= 5 && Unescape(w[4]) == path {
			found = w // the last is the uppermost
		}
	}
	return found, lines.Err()
}

// Unescape undoes the octal escapes of a path in mountinfo.
func Unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Aborter opens what ends a connection from outside when something is written
// to it: every request fails, those under way and those to come. It is opened
// beforehand, since a path may not be walked when the time comes. It needs
// no mounted fusectl.
func Aborter(connection uint32) (*os.File, error) {
	ctl, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("FUSE control file system: %w", err)
	}
	defer unix.Close(ctl)
	if err := unix.FsconfigCreate(ctl); err != nil {
		return nil, fmt.Errorf("FUSE control file system: %w", err)
	}
	mnt, err := unix.Fsmount(ctl, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("FUSE control file system: %w", err)
	}
	defer unix.Close(mnt)
	fd, err := unix.Openat(mnt, fmt.Sprintf("%d/abort", connection), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("FUSE connection %d: %w", connection, err)
	}
	return os.NewFile(uintptr(fd), "abort"), nil
}

// Abort ends a connection. One that is gone is success.
func Abort(connection uint32) error {
	f, err := Aborter(connection)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("1")
	return err
}
