package xfs

import "github.com/cleave-san/cleave/lun"

// OpenUnsummed is Open for what was changed below its checksums.
func OpenUnsummed(dev lun.Device) (*FS, error) { return open(dev, true) }
