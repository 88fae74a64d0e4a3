package worker

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/recovery/worker/sandbox"
)

// landlockEnv tells the confined program what came of Landlock: its version, or
// why there is none.
const landlockEnv = "CLEAVE_WORKER_LANDLOCK"

// confine gives up what a worker must not have, and then becomes a new image
// of the program: no_new_privs and Landlock hold for a thread, and only what
// comes out of an exec on that thread has them everywhere.
func confine(args []string) error {
	if len(args) != 4 {
		return errors.New("want four limits")
	}
	var limit [4]uint64
	for i, a := range args {
		var err error
		if limit[i], err = strconv.ParseUint(a, 10, 63); err != nil {
			return err
		}
	}
	runtime.LockOSThread()
	set := map[int]uint64{unix.RLIMIT_DATA: limit[0], unix.RLIMIT_NOFILE: limit[1], unix.RLIMIT_CORE: 0}
	// Threads are counted by user: ours may have many of other programs.
	if uid := os.Getuid(); uid >= firstID && uid <= lastID {
		set[unix.RLIMIT_NPROC] = limit[2]
	}
	if limit[3] > 0 {
		set[unix.RLIMIT_CPU] = limit[3]
	}
	for what, n := range set {
		// As syscall, not unix: it also stops Go from putting the limit on
		// files back at the exec.
		if err := syscall.Setrlimit(what, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("setting limit %d to %d: %w", what, n, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up new privileges: %w", err)
	}
	abi, err := sandbox.Files()
	said := strconv.Itoa(abi)
	if errors.Is(err, sandbox.ErrUnsupported) {
		said = err.Error() // seccomp has the same effect, by other means
	} else if err != nil {
		return err
	}
	// Our own arguments again, without what confine was told.
	argv := append([]string{}, os.Args[:len(os.Args)-len(args)-1]...)
	return fmt.Errorf("starting again: %w", syscall.Exec("/proc/self/exe", argv, append(os.Environ(), landlockEnv+"="+said)))
}

// Confinement is what the kernel keeps a worker from, besides what its user may
// not do anyway.
type Confinement struct {
	// Landlock is its version, 0 if the kernel has none.
	Landlock int `json:"landlock"`
	// Seccomp says whether system calls are filtered.
	Seccomp bool `json:"seccomp"`
	// Missing says why one of them is not there.
	Missing []string `json:"missing,omitempty"`
	// Refused and Allowed are what Confined had a worker try that none needs.
	Refused []string `json:"refused,omitempty"`
	Allowed []string `json:"allowed,omitempty"`
}

// filter is the last of confinement: from here on only what a worker needs of
// the kernel is there.
func filter() (Confinement, error) {
	// No other process of this user may look into or take over this one.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return Confinement{}, err
	}
	var c Confinement
	var err error
	said := os.Getenv(landlockEnv)
	if c.Landlock, err = strconv.Atoi(said); err != nil {
		c.Missing = append(c.Missing, said)
	}
	err = sandbox.Calls()
	switch {
	case err == nil:
		c.Seccomp = true
	case errors.Is(err, sandbox.ErrUnsupported):
		c.Missing = append(c.Missing, err.Error())
	default:
		return c, err
	}
	return c, nil
}

// attempts are what a worker never does. Each is refused where nothing of it
// has happened.
var attempts = []struct {
	what string
	try  func() error
}{
	{"open /etc/passwd", func() error { return closing(unix.Open("/etc/passwd", unix.O_RDONLY|unix.O_CLOEXEC, 0)) }},
	{"list /", func() error { return closing(unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)) }},
	{"make a file in /tmp", func() error {
		name := fmt.Sprintf("/tmp/cleave-worker-%d", os.Getpid())
		err := closing(unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600))
		if err == nil {
			_ = unix.Unlink(name)
		}
		return err
	}},
	{"connect by TCP", func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
		if errors.Is(err, unix.ECONNREFUSED) {
			return nil // there was somebody to refuse it
		}
		return err
	}},
	{"execute a program", func() error { return unix.Exec("/nothing-is-called-so", []string{"x"}, nil) }},
	{"trace another process", func() error { return unix.PtraceSeize(os.Getppid()) }},
	{"send its parent a signal", func() error { return unix.Kill(os.Getppid(), 0) }},
	{"make a process", func() error {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		switch {
		case errno != 0:
			return errno
		case pid == 0:
			unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0) //nolint:errcheck // does not return
		}
		return nil
	}},
	{"run code that it wrote", func() error {
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err == nil {
			_ = unix.Munmap(b)
		}
		return err
	}},
}

func closing(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// try tries all that a worker must not be able to.
func (c *Confinement) try() {
	for _, a := range attempts {
		if err := a.try(); err == nil || errors.Is(err, unix.ENOENT) { // not found, but looked for
			c.Allowed = append(c.Allowed, a.what)
		} else {
			c.Refused = append(c.Refused, a.what)
		}
	}
}

// String is the confinement in a few words.
func (c Confinement) String() string {
	words := []string{"no_new_privs"}
	if c.Landlock > 0 {
		words = append(words, fmt.Sprintf("Landlock %d", c.Landlock))
	}
	if c.Seccomp {
		words = append(words, "seccomp")
	}
	return strings.Join(words, ", ")
}
