package open

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/btrfs"
	"github.com/cleave-san/cleave/lun/fs/ext4"
	"github.com/cleave-san/cleave/lun/fs/fat"
	"github.com/cleave-san/cleave/lun/fs/ntfs"
	"github.com/cleave-san/cleave/lun/fs/xfs"
	store "github.com/cleave-san/cleave/lun/store/btrfs"
)

// fileSystems are tried in this order.
var fileSystems = []func(lun.Device) (fs.FS, error){
	func(d lun.Device) (fs.FS, error) { return ext4.Open(d) },
	func(d lun.Device) (fs.FS, error) { return xfs.Open(d) },
	func(d lun.Device) (fs.FS, error) {
		f, err := store.Open(d)
		if err != nil {
			return nil, err
		}
		return btrfs.Open(f, 0)
	},
	func(d lun.Device) (fs.FS, error) { return ntfs.Open(d) },
	// The last: its boot sector is the least of a signature.
	func(d lun.Device) (fs.FS, error) { return fat.Open(d) },
}

// ErrNoFileSystem says that a volume holds no file system that is read here.
// Compared with errors.Is.
var ErrNoFileSystem = errors.New("no file system that is read here (ext2, ext3, ext4, xfs, btrfs, ntfs, fat)")

// FileSystem opens the file system that a volume's content begins with.
// Of btrfs it is the default subvolume. A *lun.FormatError says that there is one and that it can't be read.
func FileSystem(dev lun.Device) (fs.FS, error) {
	for _, try := range fileSystems {
		f, err := try(dev)
		if errors.Is(err, lun.ErrNotFormat) {
			continue
		}
		if err != nil {
			return nil, err // not a typed nil
		}
		return f, nil
	}
	return nil, unread(dev)
}

// unread says by its name what a volume holds that is not read.
func unread(dev lun.Device) error {
	name, err := Signature(dev)
	switch {
	case err != nil:
		return err
	case name == "":
		return ErrNoFileSystem
	case name == "vmfs":
		return fmt.Errorf("vmfs: %w; vmfs6-tools, or a host of its own, read it", ErrNoFileSystem)
	}
	return fmt.Errorf("%s: %w", name, ErrNoFileSystem)
}
