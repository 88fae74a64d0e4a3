package program

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
)

// maxAmount bounds the numbers of a limit: sums of three don't overflow.
const maxAmount = 1 << 60

// Check implements driver.Checker.
func (d *Driver) Check(ctx context.Context, next []driver.VolumeID) ([]driver.Finding, error) {
	if next == nil {
		next = []driver.VolumeID{}
	}
	var fs []driver.Finding
	if err := d.ask(ctx, callCheck, "", checkArgs{next}, &fs); err != nil {
		return nil, err
	}
	for i := range fs {
		if err := complete(&fs[i]); err != nil {
			return nil, driver.Errorf(driver.Unreachable, "the program's result of %s: finding %d: %w", callCheck, i+1, err)
		}
	}
	return fs, nil
}

// complete judges a finding that has a limit and no result by that limit, and
// refuses one that says nothing.
func complete(f *driver.Finding) error {
	if l := f.Limit; l != nil {
		if l.Unit == "" || l.Most < -1 || min(l.Used, l.Next) < 0 || max(l.Used, l.Most, l.Next) > maxAmount {
			return fmt.Errorf("limit: %d of %d %.40q, next %d: want a unit, and numbers from 0 to %d (most: -1 for none)", l.Used, l.Most, l.Unit, l.Next, int64(maxAmount))
		}
		if f.Result == "" {
			r := driver.Room(f.Check, *l, f.Try)
			f.Result, f.Try = r.Result, r.Try
		}
		if f.Detail == "" {
			f.Detail = l.String()
		}
	}
	areas := []driver.Area{driver.AreaReach, driver.AreaPermission, driver.AreaCapability, driver.AreaLimit, driver.AreaHealth}
	results := []driver.Result{driver.OK, driver.Warning, driver.Failed, driver.Unchecked}
	switch {
	case !slices.Contains(areas, f.Area):
		return fmt.Errorf("area %.40q: want one of %q", f.Area, areas)
	case !slices.Contains(results, f.Result):
		return fmt.Errorf("result %.40q: want one of %q", f.Result, results)
	case f.Check == "" || f.Detail == "":
		return errors.New("check and detail: want what was looked at, and what was seen")
	}
	return nil
}

var _ driver.Checker = (*Driver)(nil)
