// Package hostvolume finds what lies under a virtual disk that is a file of this
// host, or a volume of its volume groups: which disks of the host, and where on
// them. It asks the kernel (/proc/self/mountinfo and sysfs, as proc(5) and the
// kernel's Documentation/ABI describe them), reads nothing of any disk, and
// changes nothing.
//
// A path is looked at from this process's name space of mounts. A hypervisor that
// lives in another one may mean something else by the same path.
package hostvolume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Device is a disk of the host, by what arrays know it.
type Device struct {
	Path   string // "/dev/sdb"
	NAA    string // "naa.6001405…"; "" if it has none
	Serial string // unit serial number; "" if it has none
}

// Under is where a virtual disk lies.
type Under struct {
	// Devices are the disks, several where a logical volume spans them.
	Devices []Device
	// Volume is what of the devices' contents it lies in, in the words of `lun
	// inspect`: "disk", "p1", or the UUID of a logical volume.
	Volume string
	// Path is that of the file in the volume's file system, from its root; "" if
	// the disk is the volume itself. FS is that file system's type, and Mount
	// where the host has it.
	Path, FS, Mount string
}

// ErrNone says that a path is no file of a file system on disks, so there is
// nothing under it that an array could split. Compared with errors.Is.
var ErrNone = errors.New("it lies on no disk of this host")

// Host asks the kernel of this host. Its methods may be called at once.
type Host struct {
	sys, proc string
	attached  func(device string) (naa string)
}

// New makes a Host. attached knows the NAA names of block devices that are made of
// LUNs in a process, which the kernel can't name; it may be nil.
func New(attached func(device string) (naa string)) *Host {
	return &Host{sys: "/sys", proc: "/proc", attached: attached}
}

// Under tells what lies under the file or block device at path. It returns when ctx
// ends, also where a file system hangs.
func (h *Host) Under(ctx context.Context, path string) (Under, error) {
	type answer struct {
		u   Under
		err error
	}
	done := make(chan answer, 1)
	go func() {
		u, err := h.under(path)
		done <- answer{u, err}
	}()
	select {
	case a := <-done:
		if a.err != nil {
			return Under{}, fmt.Errorf("what lies under %s: %w", path, a.err)
		}
		return a.u, nil
	case <-ctx.Done():
		return Under{}, fmt.Errorf("what lies under %s: %w", path, context.Cause(ctx))
	}
}

func (h *Host) under(path string) (Under, error) {
	if !filepath.IsAbs(path) {
		return Under{}, fmt.Errorf("is no absolute path: %w", ErrNone)
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Under{}, fmt.Errorf("%w: %w", ErrNone, err)
	}
	if err != nil {
		return Under{}, err
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return Under{}, err
	}
	var u Under
	number := st.Dev
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		m, err := h.mountOf(real, st.Dev)
		if err != nil {
			return Under{}, err
		}
		u.Path, u.FS, u.Mount = m.inside(real), m.kind, m.at
	case unix.S_IFBLK:
		number = st.Rdev
	default:
		return Under{}, fmt.Errorf("is neither a file nor a block device: %w", ErrNone)
	}
	return u, h.descend(&u, unix.Major(number), unix.Minor(number))
}

// descend goes from a block device down to the disks under it.
func (h *Host) descend(u *Under, major, minor uint32) error {
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("%s/dev/block/%d:%d", h.sys, major, minor))
	if err != nil {
		return fmt.Errorf("block device %d:%d: %w", major, minor, ErrNone)
	}
	u.Volume = "disk"
	if uuid, ok := strings.CutPrefix(line(dir, "dm/uuid"), "LVM-"); ok {
		// The group's UUID and the volume's, of 32 characters each; more for a part
		// of one, which nobody mounts.
		if len(uuid) != 64 {
			return fmt.Errorf("%s is a part of a logical volume", filepath.Base(dir))
		}
		u.Volume = uuid[32:]
		disks, err := h.disks(dir, 0)
		if err != nil {
			return err
		}
		for _, d := range disks {
			u.Devices = append(u.Devices, h.device(d))
		}
		return nil
	}
	if n := partition(dir); n != "" {
		u.Volume = "p" + n
	}
	whole, err := h.whole(dir)
	if err != nil {
		return err
	}
	u.Devices = []Device{h.device(whole)}
	return nil
}

// partition is the number of a partition, "" of anything else. kpartx makes
// partitions of multipath maps maps of their own.
func partition(dir string) string {
	if n := line(dir, "partition"); n != "" {
		return n
	}
	if n, _, ok := strings.Cut(strings.TrimPrefix(line(dir, "dm/uuid"), "part"), "-mpath-"); ok && strings.HasPrefix(line(dir, "dm/uuid"), "part") {
		return n
	}
	return ""
}

// whole is the disk of a partition, or what dir is if it is a disk.
func (h *Host) whole(dir string) (string, error) {
	switch uuid := line(dir, "dm/uuid"); {
	case line(dir, "partition") != "":
		return filepath.Dir(dir), nil
	case partition(dir) != "":
		under, err := h.slaves(dir)
		if err != nil || len(under) != 1 {
			return "", fmt.Errorf("%s is a partition of %d devices (%w)", filepath.Base(dir), len(under), err)
		}
		return under[0], nil
	case exists(dir, "dm") && !strings.HasPrefix(uuid, "mpath-"):
		return "", fmt.Errorf("%s is a device-mapper device of a kind that is not known here (%.40q)", filepath.Base(dir), uuid)
	case exists(dir, "md"):
		return "", fmt.Errorf("%s is a software RAID: name its members' volumes to the array, not it", filepath.Base(dir))
	}
	return dir, nil
}

// maxDepth bounds how many device-mapper devices lie on one another.
const maxDepth = 16

// disks are those under a logical volume.
func (h *Host) disks(dir string, depth int) (disks []string, err error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: more than %d devices on one another", filepath.Base(dir), maxDepth)
	}
	under, err := h.slaves(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range under {
		var more []string
		if strings.HasPrefix(line(d, "dm/uuid"), "LVM-") {
			more, err = h.disks(d, depth+1)
		} else {
			var one string
			one, err = h.whole(d)
			more = []string{one}
		}
		if err != nil {
			return nil, err
		}
		for _, m := range more {
			if !slices.Contains(disks, m) {
				disks = append(disks, m)
			}
		}
	}
	if len(disks) == 0 {
		return nil, fmt.Errorf("%s: %w", filepath.Base(dir), ErrNone)
	}
	return disks, nil
}

// slaves are the devices directly under one.
func (h *Host) slaves(dir string) (under []string, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, "slaves"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		d, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", e.Name()))
		if err != nil {
			return nil, err
		}
		under = append(under, d)
	}
	return under, nil
}

// device is a disk by its names.
func (h *Host) device(dir string) Device {
	name := filepath.Base(dir)
	d := Device{Path: "/dev/" + strings.ReplaceAll(name, "!", "/")} // sysfs's way of writing a slash
	for _, attr := range []string{"device/wwid", "wwid"} {
		if w := line(dir, attr); strings.HasPrefix(w, "naa.") {
			d.NAA = w
		}
	}
	// WWIDs of multipathd: the type of the designator, 3 for NAA, and its digits.
	if w, ok := strings.CutPrefix(line(dir, "dm/uuid"), "mpath-3"); ok {
		d.NAA = "naa." + w
	}
	if h.attached != nil && d.NAA == "" {
		d.NAA = h.attached(d.Path)
	}
	// Page 0x80: four bytes of header, then the serial number (SPC-4 7.8.15).
	if page, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80")); err == nil && len(page) > 4 {
		d.Serial = strings.TrimSpace(string(page[4:]))
	} else if s := line(dir, "serial"); s != "" { // virtio_blk
		d.Serial = s
	}
	return d
}

// line is the one line of an attribute, "" if it can't be read.
func line(dir, attr string) string {
	b, err := os.ReadFile(filepath.Join(dir, attr))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func exists(dir, attr string) bool {
	_, err := os.Stat(filepath.Join(dir, attr))
	return err == nil
}
