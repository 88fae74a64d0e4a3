package ntfs

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

var le = binary.LittleEndian

const (
	bootSize = 512
	// fixupSize is the unit that the last two bytes of are checked, whatever the
	// device's sectors are.
	fixupSize = 512
	// maxCluster is that of current Windows, in bytes.
	maxCluster = 2 << 20
)

// boot is the boot sector, in bytes where nothing else is said.
type boot struct {
	cluster  int64
	clusters int64 // whole ones on the volume
	size     int64
	mft      int64 // cluster that the MFT begins at
	record   int64 // of the MFT
	serial   uint64
}

func damaged(off int64, field string, value any, reason string) error {
	return &lun.FormatError{Format: "ntfs", Offset: off, Field: field, Value: value, Reason: reason}
}

func power(n, low, high int64) bool { return n >= low && n <= high && n&(n-1) == 0 }

// perCluster is a size that is given in clusters, or, if negative, as a power of two.
func perCluster(b byte, cluster int64) int64 {
	if n := int8(b); n < 0 {
		return 1 << min(62, -int(n))
	}
	return int64(b) * cluster
}

// parseBoot reads the boot sector of a device of size bytes.
func parseBoot(b []byte, size int64) (*boot, error) {
	if string(b[3:11]) != "NTFS    " {
		return nil, lun.ErrNotFormat
	}
	sector, per := int64(le.Uint16(b[11:])), int64(b[13])
	if b[13] > 0x80 {
		per = 1 << min(62, 256-int(b[13]))
	}
	if !power(sector, 256, 4096) {
		return nil, damaged(11, "BytesPerSector", sector, "is no size of a sector")
	}
	if !power(per, 1, maxCluster/sector) {
		return nil, damaged(13, "SectorsPerCluster", b[13], "clusters have at most 2 MiB")
	}
	total := le.Uint64(b[40:])
	if total == 0 || total > uint64(size/sector) {
		return nil, damaged(40, "TotalSectors", total, fmt.Sprintf("does not fit the device, which has %d sectors", size/sector))
	}
	s := &boot{cluster: sector * per, size: int64(total) * sector, serial: le.Uint64(b[72:])}
	s.clusters = s.size / s.cluster
	s.record = perCluster(b[64], s.cluster)
	if !power(s.record, fixupSize, 4096) {
		return nil, damaged(64, "ClustersPerFileRecordSegment", b[64], "records of files have 512 to 4096 bytes")
	}
	mft := le.Uint64(b[48:])
	if mft == 0 || mft >= uint64(s.clusters) || s.record > (s.clusters-int64(mft))*s.cluster {
		return nil, damaged(48, "MftStartLcn", mft, fmt.Sprintf("there are %d clusters", s.clusters))
	}
	s.mft = int64(mft)
	return s, nil
}
