package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/fuse"
)

// openerPatience is for how long somebody may have a device open that is to be
// detached: those who look at every disk are soon done.
const openerPatience = 2 * time.Second

// udevPatience is the same for udev, which looks at every new disk, and on a
// host with much to do takes its time.
const udevPatience = 30 * time.Second

// claim opens a block device for this process alone, or says who uses it.
func claim(ctx context.Context, dev string) (*os.File, error) {
	// Mounts, device-mapper, md and swap hold a device exclusively, and so do we.
	f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, busy(dev)
	}
	if err != nil {
		return nil, err
	}
	began := time.Now()
	for who := openers(dev); len(who) > 0; who = openers(dev) {
		patience := openerPatience
		if !slices.ContainsFunc(who, func(w string) bool { return !strings.Contains(w, "udev") }) {
			patience = udevPatience
		}
		if time.Since(began) > patience || ctx.Err() != nil {
			f.Close()
			return nil, busy(dev)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return f, nil
}

// busy is ErrBusy with the names of those who use a device.
func busy(dev string) error {
	who := slices.Concat(holders(dev), mounts(dev), swaps(dev), openers(dev))
	if len(who) == 0 {
		who = []string{"somebody who can't be seen from here"}
	}
	return fmt.Errorf("%s: %w: %s", dev, ErrBusy, strings.Join(who, ", "))
}

// number is a block device's, as text: major:minor.
func number(dev string) string {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// family are the numbers of a disk and of its partitions, by their names below
// /dev.
func family(dev string) map[string]string {
	base := filepath.Base(resolved(dev))
	all := map[string]string{number(dev): base}
	parts, _ := filepath.Glob(filepath.Join("/sys/block", base, base+"*", "dev"))
	for _, p := range parts {
		if b, err := os.ReadFile(p); err == nil {
			all[strings.TrimSpace(string(b))] = filepath.Base(filepath.Dir(p))
		}
	}
	return all
}

// holders are the devices that stand on one.
func holders(dev string) (who []string) {
	base := filepath.Base(resolved(dev))
	names, _ := filepath.Glob(filepath.Join("/sys/block", base, "holders/*"))
	more, _ := filepath.Glob(filepath.Join("/sys/block", base, base+"*", "holders/*"))
	for _, n := range append(names, more...) {
		name := filepath.Base(n)
		if b, err := os.ReadFile(filepath.Join("/sys/block", name, "dm/name")); err == nil {
			name += " (" + strings.TrimSpace(string(b)) + ")"
		}
		who = append(who, "held by "+name)
	}
	return who
}

// mounts are the places where it is mounted, in whatever mount namespace.
func mounts(dev string) (who []string) {
	numbers := family(dev)
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	seen := map[string]bool{}
	for _, table := range tables {
		// Processes that share a namespace show the same.
		ns, err := os.Readlink(filepath.Join(filepath.Dir(table), "ns/mnt"))
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		b, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if w := strings.Fields(line); len(w) > 4 && numbers[w[2]] != "" {
				text := "mounted at " + fuse.Unescape(w[4])
				if !slices.Contains(who, text) {
					who = append(who, text)
				}
			}
		}
	}
	return who
}

// swaps says whether the kernel swaps to it.
func swaps(dev string) (who []string) {
	numbers := family(dev)
	b, _ := os.ReadFile("/proc/swaps")
	for line := range strings.Lines(string(b)) {
		if path, _, _ := strings.Cut(line, " "); strings.HasPrefix(path, "/dev/") && numbers[number(path)] != "" {
			who = append(who, "swapped to")
		}
	}
	return who
}

// openers are the processes besides this one that have it open.
func openers(dev string) (who []string) {
	numbers := family(dev)
	delete(numbers, "")
	fds, _ := filepath.Glob("/proc/[0-9]*/fd")
	for _, dir := range fds {
		pid := filepath.Base(filepath.Dir(dir))
		if pid == strconv.Itoa(os.Getpid()) {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			// A look at the name first: what a hung mount has there must not be
			// asked for more.
			if name, err := os.Readlink(path); err != nil || !strings.HasPrefix(name, "/dev/") {
				continue
			}
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
				continue
			}
			if numbers[fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))] != "" {
				who = append(who, "open in process "+pid+command(pid))
				break
			}
		}
	}
	return who
}

// command is the name of a process, in parentheses.
func command(pid string) string {
	b, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return ""
	}
	return " (" + strings.TrimSpace(string(b)) + ")"
}
