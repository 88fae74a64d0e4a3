package open

import (
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// signatures are how file systems, and what else may fill a volume, are known: by
// bytes at a place. They are those that libblkid and file(1) go by.
var signatures = []struct {
	name  string
	off   int64
	magic string
}{
	{"luks", 0, luksMagic},
	{"xfs", 0, "XFSB"},
	{"squashfs", 0, "hsqs"},
	{"refs", 3, "ReFS\x00\x00\x00\x00"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"apfs", 32, "NXSB"},
	{"fat", 54, "FAT12   "},
	{"fat", 54, "FAT16   "},
	{"fat", 82, "FAT32   "},
	{"hfs+", 1024, "H+\x00\x04"},
	{"hfsx", 1024, "HX\x00\x05"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"ext4", 1080, "\x53\xef"}, // or an older one
	{"swap", 4086, "SWAPSPACE2"},
	{"bcachefs", 4120, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	{"jfs", 32 << 10, "JFS1"},
	{"iso9660", 32769, "CD001"},
	{"udf", 36865, "NSR0"},
	{"btrfs", 65600, "_BHRfS_M"},
	{"gfs2", 64 << 10, "\x01\x16\x19\x70"},
	{"reiserfs", 65588, "ReIsEr"},
	{"ocfs2", 8 << 10, "OCFSV2"},
	{"zfs", 128 << 10, "\x0c\xb1\xba\x00\x00\x00\x00\x00"},
	{"zfs", 132 << 10, "\x0c\xb1\xba\x00\x00\x00\x00\x00"},
	{"vmfs", 1 << 20, "\x0d\xd0\x01\xc0"},
	{"vmfs", 2 << 20, "\x5e\xf1\xab\x2f"},
}

// Signature names the file system, or what else a volume's content says of itself
// that it is; "" if it says nothing that is known. That a name is told does not
// mean that it can be read here, nor that it is not damaged.
func Signature(dev lun.Device) (string, error) {
	for _, s := range signatures {
		b := make([]byte, len(s.magic))
		if s.off+int64(len(b)) > dev.Size() {
			continue
		}
		if _, err := dev.ReadAt(b, s.off); err != nil {
			return "", fmt.Errorf("look for a file system: %w", err)
		}
		if string(b) == s.magic {
			return s.name, nil
		}
	}
	return "", nil
}
