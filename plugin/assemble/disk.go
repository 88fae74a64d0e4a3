package assemble

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/orchestrator"
)

// disk is a file or block device of this host that nobody else serves. Reading
// it is open.FileDevice's part.
type disk struct {
	*open.FileDevice
	f        *os.File
	writable bool
}

var (
	_ lun.Device  = (*disk)(nil)
	_ lun.Trimmer = (*disk)(nil)
	_ lun.Blocker = (*disk)(nil)
)

// openDisk opens path and claims it: a block device by O_EXCL, which the kernel
// grants to one holder and to nobody while it is mounted (open(2)); a file by
// flock(2), alone for writing. In use is orchestrator.ErrBusy.
func openDisk(path string, writable bool) (*disk, error) {
	d, err := claimDisk(path, writable)
	if err != nil {
		return nil, err
	}
	if logical, _ := d.Blocks(); d.Size() == 0 || d.Size()%int64(logical) != 0 {
		err := usage("%s has %d bytes: a LUN has whole blocks of %d, and one at least; `truncate` makes it so", path, d.Size(), logical)
		return nil, errors.Join(err, d.f.Close())
	}
	return d, nil
}

// claimDisk is openDisk for what need not have whole blocks: a virtual disk's
// container.
func claimDisk(path string, writable bool) (_ *disk, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	flags, lock := os.O_RDONLY, unix.LOCK_SH
	if writable {
		flags, lock = os.O_RDWR, unix.LOCK_EX
		if st.Mode()&fs.ModeDevice != 0 {
			flags |= unix.O_EXCL
		}
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, busyDisk(path)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := unix.Flock(int(f.Fd()), lock|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, busyDisk(path)
	} else if err != nil {
		return nil, fmt.Errorf("%s: locking it: %w", path, err)
	}
	d, err := open.FromFile(f)
	if err != nil {
		return nil, err
	}
	return &disk{FileDevice: d, f: f, writable: writable}, nil
}

func busyDisk(path string) error {
	return fmt.Errorf("%s: it is served, mounted or locked by somebody else: %w", path, &hinted{orchestrator.ErrBusy,
		"`lsof " + path + "` shows who has it open; --read-only shares a file with other readers"})
}

// hinted is an error that says what to try next.
type hinted struct {
	error
	next string
}

func (h *hinted) Unwrap() error { return h.error }
func (h *hinted) Hint() string  { return h.next }

func (d *disk) check(off, n int64) error {
	if !d.writable {
		return lun.ErrReadOnly
	}
	return lun.CheckRange(off, n, d.Size())
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := d.f.WriteAt(p, off)
	return n, full(err)
}

// Trim punches a hole, or writes zeroes where the file system can't.
func (d *disk) Trim(off, n int64) error {
	if err := d.check(off, n); err != nil || n == 0 {
		return err
	}
	defer d.Trimmed()
	err := unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return full(err)
	}
	zero := make([]byte, min(n, 1<<20))
	for n > 0 {
		piece := zero[:min(n, int64(len(zero)))]
		if _, err := d.f.WriteAt(piece, off); err != nil {
			return full(err)
		}
		off, n = off+int64(len(piece)), n-int64(len(piece))
	}
	return nil
}

func (d *disk) Sync() error {
	if !d.writable {
		return nil
	}
	return d.f.Sync()
}

// Close makes what was written stable first.
func (d *disk) Close() error { return errors.Join(d.Sync(), d.f.Close()) }

// full adds lun.ErrNoSpace where the file system has none left.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", lun.ErrNoSpace, err)
	}
	return err
}

// pathIdentity is the lastingIdentity of a file or device.
func pathIdentity(path string, target iscsi.Name) (lun.Identity, error) {
	path, err := realPath(path)
	if err != nil {
		return lun.Identity{}, err
	}
	return lastingIdentity(path, target)
}

// realPath is absolute and without symbolic links.
func realPath(path string) (string, error) {
	full, err := filepath.Abs(path)
	if err == nil {
		full, err = filepath.EvalSymlinks(full)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return full, nil
}

// lastingSeed is that of the identity of a recovered view: the same for the same
// sources, target and host.
func lastingSeed(paths []string, target iscsi.Name) (string, error) {
	all := "new identity"
	for _, path := range paths {
		if !isLUN(path) {
			var err error
			if path, err = realPath(path); err != nil {
				return "", err
			}
		}
		all += "\x00" + path
	}
	id, err := lastingIdentity(all, target)
	return hex.EncodeToString(id[:]), err
}

// lastingIdentity is the same for the same source, target and host, so that an
// initiator finds its disk again after a restart.
func lastingIdentity(source string, target iscsi.Name) (lun.Identity, error) {
	host, err := machineID()
	if err != nil {
		return lun.Identity{}, err
	}
	h := sha256.Sum256([]byte(strings.Join([]string{"cleave lun serve", host, string(target), source}, "\x00")))
	id := lun.Identity(h[:16])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8, RFC 9562 section 5.8
	return id, nil
}

// machineID is machine-id(5), or the host's name where there is none.
func machineID() (string, error) {
	f, err := os.Open("/etc/machine-id")
	if errors.Is(err, fs.ErrNotExist) {
		return os.Hostname()
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 256))
	return string(b), err
}
