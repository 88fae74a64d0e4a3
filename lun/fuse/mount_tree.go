package fuse

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// TreeSystem is the type that mounts of file systems have in mountinfo.
const TreeSystem = "fuse.cleave-files"

// TreeOptions of NewTree.
type TreeOptions struct {
	// Source is what mountinfo names as the mount's source.
	Source string
	// Others may look as well, where the files' modes and access control lists
	// let them. Otherwise only who mounts it may, and root not even then where
	// somebody else did; modes don't count for him.
	Others bool
}

// NewTree mounts on path, an existing directory, for ServeTree: read-only,
// nosuid, nodev and noexec. It takes fusermount3 where this process may not
// mount. When the process dies, so does the connection; the mount stays until
// somebody unmounts it.
func NewTree(path string, o TreeOptions) (*Mount, error) {
	mount := mountTree
	if os.Geteuid() != 0 {
		mount = fusermount
	}
	fd, err := mount(path, o)
	if err != nil {
		return nil, fmt.Errorf("mounting FUSE on %s: %w", path, err)
	}
	number, err := connectionAt(path)
	if err != nil {
		unix.Close(fd)
		return nil, errors.Join(err, UnmountTree(path))
	}
	return &Mount{Connection: number, fd: fd, path: path, readOnly: true, shared: o.Others}, nil
}

// readAhead is how much of a file the kernel may read ahead, in bytes.
const readAhead = 4 << 20

// ReadAhead lets the kernel read farther ahead than its 128 KiB, if this process
// may say so: a file is then read by large requests, several at once.
func (m *Mount) ReadAhead() {
	_ = os.WriteFile(fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", m.Connection), fmt.Append(nil, readAhead>>10), 0)
}

func (o TreeOptions) others() string {
	if o.Others {
		return ",allow_other,default_permissions"
	}
	return ""
}

func mountTree(path string, o TreeOptions) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d", fd, unix.S_IFDIR|0o755, os.Geteuid(), os.Getegid()) + o.others()
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY)
	if err := unix.Mount(o.Source, path, TreeSystem, flags, data); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// fusermount has fusermount3, which is set-user-ID, open and mount, and receives
// the descriptor by the socket that _FUSE_COMMFD names.
func fusermount(path string, o TreeOptions) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")
	defer unix.Close(pair[0])
	_, subtype, _ := strings.Cut(TreeSystem, ".")
	// In a list of options a comma must be escaped, and so a backslash.
	source := strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(o.Source)
	cmd := exec.Command("fusermount3", "-o", "ro,nosuid,nodev,noexec,subtype="+subtype+",fsname="+source+o.others(), "--", path)
	cmd.Env, cmd.ExtraFiles = append(os.Environ(), "_FUSE_COMMFD=3"), []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if err != nil {
		return -1, fusermountError(out, err)
	}
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fusermount3: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return -1, errors.Join(errors.New("fusermount3 handed no descriptor over"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.Join(errors.New("fusermount3 handed no descriptor over"), err)
	}
	return fds[0], nil
}

func fusermountError(out []byte, err error) error {
	text, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("an ordinary user needs fusermount3 (package fuse3): %w", err)
	case strings.Contains(text, "busy"):
		return fmt.Errorf("%s: %w", text, unix.EBUSY)
	case text != "":
		return errors.New(text)
	}
	return err
}

// UnmountTree takes a mount of NewTree away. One that is in use is EBUSY, and
// stays; none there is success, and another kind of mount ErrOtherMount.
func UnmountTree(path string) error {
	system, found, err := mountAt(path)
	if err != nil || !found {
		return err
	}
	if system != TreeSystem {
		return fmt.Errorf("%s, of type %s: %w", path, system, ErrOtherMount)
	}
	if os.Geteuid() != 0 {
		return fusermountOff(path)
	}
	err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmounting %s: %w", path, err)
}

// fusermountOff unmounts as an ordinary user. No mount there is success.
func fusermountOff(path string, flags ...string) error {
	_, found, err := mountAt(path)
	if err != nil || !found {
		return err
	}
	out, err := exec.Command("fusermount3", append(append([]string{"-u"}, flags...), "--", path)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", path, fusermountError(out, err))
	}
	return nil
}

// ErrOtherMount says that what is mounted there is not ours.
var ErrOtherMount = errors.New("it is not a mount of files by Cleave")

// MountPath is the path by which mountinfo names a directory. Only what is above
// it is asked of: the directory itself may be a mount whose process is dead.
func MountPath(dir string) (string, error) {
	path, err := filepath.Abs(dir)
	if err != nil || path == "/" {
		return path, err
	}
	if link, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(path), link)
		}
		if path, err = filepath.EvalSymlinks(link); err == nil {
			return path, nil
		}
		path = link
	} else if !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTCONN) {
		return "", err
	}
	above, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(above, filepath.Base(path)), err
}
