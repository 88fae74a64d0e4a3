package arrays

import (
	"context"
	"fmt"

	"github.com/cleave-san/cleave/arrays/driver"
)

// PresentedTo tells who has a volume before them: IQNs, the array's names of hosts,
// and "*" for everybody. Kind NotSupported says that the array doesn't know.
func (a *Array) PresentedTo(ctx context.Context, v driver.VolumeID) (names []string, err error) {
	op := fmt.Sprintf("asking who sees volume %q", v)
	if v == "" {
		return nil, a.refuse(op, driver.InvalidRequest, "no volume is named")
	}
	if a.presents == nil {
		return nil, a.refuse(op, driver.NotSupported, "it doesn't tell")
	}
	err = a.call(ctx, op, false, func(ctx context.Context) error {
		if names, err = a.presents.PresentedTo(ctx, v); err != nil {
			return err
		}
		for i, n := range names {
			if n == "" || n != oneLine(n) {
				return fmt.Errorf("the provider's answer makes no sense: name %d of %d, %.80q, is none", i+1, len(names), n)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return names, nil
}
