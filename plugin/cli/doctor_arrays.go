package cli

import (
	"context"
	"path/filepath"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
)

// ExamineOptions say which arrays are looked at, and for which set.
type ExamineOptions struct {
	Config string // "": the array at Socket
	Socket string
	// Disks are those of the VMs that are known: the next set splits the volumes
	// under them. None: all volumes that an array lists.
	Disks []orchestrator.Disk
	// Limit is how long each array may take.
	Limit time.Duration
}

// Examination is what was found at an array.
type Examination struct {
	Type   string `json:"type"`
	Socket string `json:"socket,omitempty"`
	arrays.Examination
}

// examineArrays looks at the arrays, for a set of all VMs that are known.
func (a *app) examineArrays(ctx context.Context, config string, limit time.Duration, vms []orchestrator.VM) ([]Examination, error) {
	if a.parts.Examine == nil {
		return nil, nil
	}
	o := ExamineOptions{Config: config, Socket: a.arraySocket, Limit: limit}
	for _, vm := range vms {
		for _, d := range vm.Disks {
			if !d.ReadOnly {
				o.Disks = append(o.Disks, d)
			}
		}
	}
	return a.parts.Examine(ctx, o)
}

// arrayFindings are the doctor's lines about an array. Where the array does not
// answer, the first has the hint of its error.
func arrayFindings(x Examination) (out []finding) {
	for i, f := range x.Findings {
		l := finding{
			Check: "array " + x.Array + ": " + f.Check, Result: string(f.Result), Detail: f.Detail, Try: f.Try,
			Array: x.Array, Area: f.Area, Limit: f.Limit,
		}
		if i == 0 && f.Area == driver.AreaReach {
			l.Check = "array " + x.Array
		}
		switch {
		case f.Result != driver.Failed:
		case i == 0 && x.Err != nil:
			l.err = x.Err
			_, l.Try = exitOf(x.Err)
		default:
			l.err = driver.Errorf(failureOf[f.Area], "%s", f.Detail)
		}
		out = append(out, l)
	}
	return out
}

// samePath reports whether two paths name one place, as far as their text tells.
func samePath(a, b string) bool {
	x, err := filepath.Abs(a)
	y, err2 := filepath.Abs(b)
	return err == nil && err2 == nil && x == y
}

// failureOf is the kind of error that a set would meet by what failed.
var failureOf = map[driver.Area]driver.Kind{
	driver.AreaReach:      driver.Unreachable,
	driver.AreaPermission: driver.NotPermitted,
	driver.AreaCapability: driver.NotSupported,
	driver.AreaLimit:      driver.NoSpace,
}
