package sandbox

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What Landlock can take, by the version (ABI) that began to know it.
const (
	filesV1 = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	filesV2  = unix.LANDLOCK_ACCESS_FS_REFER
	filesV3  = unix.LANDLOCK_ACCESS_FS_TRUNCATE
	netV4    = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	filesV5  = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	scopesV6 = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
)

// run is what a program's own file needs.
const run = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE

// self is this program's file, whatever its name has become.
const self = "/proc/self/exe"

// Files takes the file system from the calling thread, which must be locked to
// its goroutine, and from whatever it executes. One file can still be read and
// executed: this program's, so that it can start again, with its threads all
// confined; for a program that is dynamically linked, the system's libraries as
// well. It returns Landlock's version.
func Files() (abi int, err error) {
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
	case unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM: // not built in, not enabled at boot, hidden by a container
		return 0, fmt.Errorf("Landlock: %w: %w", ErrUnsupported, errno)
	default:
		return 0, fmt.Errorf("Landlock: asking for its version: %w", errno)
	}
	abi = int(n)
	attr := unix.LandlockRulesetAttr{Access_fs: filesV1}
	for _, since := range []struct {
		abi           int
		fs, net, more uint64
	}{{2, filesV2, 0, 0}, {3, filesV3, 0, 0}, {4, 0, netV4, 0}, {5, filesV5, 0, 0}, {6, 0, 0, scopesV6}} {
		if abi >= since.abi {
			attr.Access_fs |= since.fs
			attr.Access_net |= since.net
			attr.Scoped |= since.more
		}
	}
	// A kernel that knows less takes the longer structure if its end is zero.
	rules, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return 0, fmt.Errorf("Landlock: making rules: %w", errno)
	}
	defer unix.Close(int(rules))
	paths, err := needed()
	if err != nil {
		return 0, fmt.Errorf("Landlock: reading this program's file: %w", err)
	}
	for _, path := range paths {
		if err := allow(int(rules), path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("Landlock: a rule for %s: %w", path, err)
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, rules, 0, 0); errno != 0 {
		return 0, fmt.Errorf("Landlock: confining this process: %w", errno)
	}
	return abi, nil
}

// needed are the files without which this program can't start again.
func needed() ([]string, error) {
	f, err := elf.Open(self)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return []string{self, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"}, nil
		}
	}
	return []string{self}, nil
}

func allow(rules int, path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The kernel's structure is packed; what follows in ours is not read.
	rule := unix.LandlockPathBeneathAttr{Allowed_access: run, Parent_fd: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
