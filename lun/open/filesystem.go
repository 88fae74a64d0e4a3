package open

import (
	"errors"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/btrfs"
	"github.com/cleave-san/cleave/lun/fs/ext4"
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
}

// ErrNoFileSystem says that a volume holds no file system that is read here.
// Compared with errors.Is.
var ErrNoFileSystem = errors.New("no file system that is read here (ext2, ext3, ext4, xfs, btrfs)")

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
	return nil, ErrNoFileSystem
}
