package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loopMade is how many loop devices the kernel makes by itself at its start
// (CONFIG_BLK_DEV_LOOP_MIN_COUNT); those beyond are taken away after use.
const loopMade = 8

// loopAttach puts a loop device on a file, without a page cache of its own file
// below it (direct I/O) and without looking for partitions.
func loopAttach(path string, size int64, block int, readOnly bool) (string, error) {
	flags, mode := uint32(unix.LO_FLAGS_DIRECT_IO), os.O_RDWR
	if readOnly {
		flags, mode = flags|unix.LO_FLAGS_READ_ONLY, os.O_RDONLY
	}
	// A loop device takes the size that the kernel knows already.
	if st, err := os.Stat(path); err != nil {
		return "", err
	} else if st.Size() != size {
		return "", fmt.Errorf("%s has %d bytes, the device %d", path, st.Size(), size)
	}
	file, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return "", err
	}
	defer file.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, ErrUnsupported)
	}
	defer ctl.Close()
	c := unix.LoopConfig{Fd: uint32(file.Fd()), Size: uint32(block), Info: unix.LoopInfo64{Flags: flags}}
	copy(c.Info.File_name[:len(c.Info.File_name)-1], path)
	for range 100 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("looking for a free loop device: %w", err)
		}
		dev := "/dev/loop" + strconv.Itoa(n)
		err = loopConfigure(dev, &c, readOnly)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, fs.ErrNotExist) {
			continue // somebody was faster, or took it away
		}
		if err != nil {
			return "", fmt.Errorf("setting up %s: %w", dev, err)
		}
		return dev, checkLoop(dev, size, readOnly)
	}
	return "", fmt.Errorf("all free loop devices go to others: %w", ErrBusy)
}

func loopConfigure(dev string, c *unix.LoopConfig, readOnly bool) error {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(dev, mode, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlLoopConfigure(int(f.Fd()), c)
}

// checkLoop has the kernel's word that the device is what was asked for.
func checkLoop(dev string, size int64, readOnly bool) error {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev), "loop/dio"))
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) != "1" {
		return fmt.Errorf("%s does no direct I/O: %w", dev, ErrUnsupported)
	}
	return checkBlock(dev, size, readOnly)
}

// checkBlock compares a block device with what it has to be.
func checkBlock(dev string, size int64, readOnly bool) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := f.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("size of %s: %w", dev, err)
	}
	if got != size {
		return fmt.Errorf("%s has %d bytes, want %d", dev, got, size)
	}
	ro, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
	if err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	if readOnly && ro == 0 {
		return fmt.Errorf("%s is writable, and should not be", dev)
	}
	return nil
}

// loopOn finds the loop device on a file, "" if there is none.
func loopOn(path string) (string, error) {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has been taken away
		}
		if strings.TrimSuffix(string(b), "\n") == path {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(name))), nil
		}
	}
	return "", nil
}

// loopDetach takes the loop device off a file and waits until it is.
func loopDetach(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		dev, err := loopOn(path)
		if err != nil || dev == "" {
			return err
		}
		if err := loopClear(dev, path); err != nil {
			return err
		}
		on, err := loopOn(path)
		if err != nil {
			return err
		}
		if on == "" {
			return loopRemove(dev)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is held open by somebody: %w", dev, ErrBusy)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// loopClear asks for it. While others have the device open, it goes with the
// last of them.
func loopClear(dev, path string) error {
	f, err := os.Open(dev)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if on, err := loopOn(path); err != nil || on != dev {
		return err // cleared, and maybe somebody else's, before it was open
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("clearing %s: %w", dev, err)
	}
	return nil
}

// loopRemove takes away a device that the kernel made for want of a free one.
// It stays if somebody has taken it meanwhile.
func loopRemove(dev string) error {
	n, err := strconv.Atoi(strings.TrimPrefix(dev, "/dev/loop"))
	if err != nil || n < loopMade {
		return nil
	}
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer ctl.Close()
	err = unix.IoctlSetInt(int(ctl.Fd()), unix.LOOP_CTL_REMOVE, n)
	if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("taking %s away: %w", dev, err)
	}
	return nil
}
