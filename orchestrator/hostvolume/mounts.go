package hostvolume

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kinds are the file systems whose files are found again on a split.
var kinds = map[string]bool{"ext2": true, "ext3": true, "ext4": true, "xfs": true}

// mount is a line of mountinfo, proc_pid_mountinfo(5).
type mount struct {
	device string // "8:1"
	root   string // the directory of the file system that is mounted
	at     string // where
	kind   string
}

// inside is the path of a file below at in the file system, from its root.
func (m mount) inside(path string) string {
	rel := strings.TrimPrefix(path, strings.TrimSuffix(m.at, "/"))
	return filepath.Join(m.root, rel)
}

// mountOf finds the mount that shows a file: of those that show its device, and
// that it lies below, the one that is deepest and was made last.
func (h *Host) mountOf(path string, device uint64) (best mount, err error) {
	number := fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
	found := false
	err = h.mounts(func(m mount) {
		if m.device == number && below(path, m.at) && (!found || len(m.at) >= len(best.at)) {
			best, found = m, true
		}
	})
	switch {
	case err != nil:
		return best, err
	case !found: // of a file system without a device its files have another number
		return best, fmt.Errorf("no mount of a disk shows it: %w", ErrNone)
	case !kinds[best.kind]:
		return best, fmt.Errorf("it lies in a file system of type %s, in which it is not found again on a split; in ext2, ext3, ext4 and XFS it is", best.kind)
	}
	return best, nil
}

func below(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}

// parseMount reads "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw".
func parseMount(s string) (m mount, ok bool) {
	before, after, ok := strings.Cut(s, " - ")
	w, rest := strings.Fields(before), strings.Fields(after)
	if !ok || len(w) < 6 || len(rest) < 1 {
		return m, false
	}
	return mount{device: w[2], root: unescape(w[3]), at: unescape(w[4]), kind: rest[0]}, true
}

// unescape undoes the kernel's octal escapes of blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Mounted reports whether a file system on a disk is mounted at a path.
func (h *Host) Mounted(path string) (bool, error) {
	found := false
	err := h.mounts(func(m mount) { found = found || m.at == path && kinds[m.kind] })
	return found, err
}

// mounts calls fn for each mount that this process sees, in the order in which
// they were made.
func (h *Host) mounts(fn func(mount)) error {
	f, err := os.Open(filepath.Join(h.proc, "self/mountinfo"))
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m, ok := parseMount(lines.Text()); ok {
			fn(m)
		}
	}
	return lines.Err()
}
