package arraytest

import (
	"context"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Sequential is a provider that claims to split groups and splits one volume
// after the other: the control that shows that the suite's check of the write
// order can fail. SplitUnderLoad has to catch it.
type Sequential struct {
	driver.Driver
	driver.Opener
}

// SplitGroup tears the write order.
func (s Sequential) SplitGroup(ctx context.Context, tag driver.Tag, vs []driver.VolumeID) ([]driver.Snapshot, error) {
	out := make([]driver.Snapshot, len(vs))
	for i, v := range vs {
		var err error
		if out[i], err = s.Split(ctx, tag, v); err != nil {
			return nil, err
		}
		out[i].Group = "claimed"
	}
	return out, nil
}
