package arrays

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Examination is what an operator wants to know of an array before the next set.
type Examination struct {
	Array string `json:"array"`
	Took  int64  `json:"tookMs"` // until it was over
	// Description is nil where the array did not give one.
	Description *driver.Description `json:"description,omitempty"`
	Findings    []driver.Finding    `json:"findings"`
	// Err is why the array does not answer.
	Err error `json:"-"`
}

// maxFindings bounds what is taken from a provider, and maxText each text of it.
const (
	maxFindings = 2000
	maxText     = 500
)

// Examine looks at an array: whether it answers, what it can do, and what its
// provider can tell about permissions and limits for a set of the volumes next.
// It returns when ctx ends, also where the provider does not heed that.
func (a *Array) Examine(ctx context.Context, next []driver.VolumeID) Examination {
	began := time.Now()
	done := make(chan Examination, 1)
	go func() { done <- a.examine(ctx, next) }()
	var x Examination
	select {
	case x = <-done:
	case <-ctx.Done():
		// Who heeds ctx says more in its error.
		t := time.NewTimer(time.Second)
		defer t.Stop()
		select {
		case x = <-done:
		case <-t.C:
			x.Err = a.refuse("examining it", driver.Unreachable, "it gave no answer within %v", time.Since(began).Round(time.Second))
		}
	}
	x.Array, x.Took = a.name, time.Since(began).Milliseconds()
	reach := driver.Finding{Area: driver.AreaReach, Check: "answers", Result: driver.OK, Detail: fmt.Sprintf("within %d ms", x.Took)}
	if x.Err != nil {
		reach.Result, reach.Detail = driver.Failed, oneLine(x.Err.Error())
	}
	x.Findings = append([]driver.Finding{reach}, x.Findings...)
	return x
}

func (a *Array) examine(ctx context.Context, next []driver.VolumeID) (x Examination) {
	d, err := a.Describe(ctx)
	if err != nil {
		x.Err = err
		return x
	}
	x.Description = &d
	can := driver.Finding{Area: driver.AreaCapability, Check: "can", Result: driver.OK, Detail: capabilities(d)}
	x.Findings = append(x.Findings, can)
	if a.checker == nil {
		x.Findings = append(x.Findings, driver.Finding{
			Area: driver.AreaLimit, Check: "permissions and limits", Result: driver.Unchecked, Detail: "this array's provider does not tell",
		})
		return x
	}
	err = a.call(ctx, "examining it", false, func(ctx context.Context) error {
		fs, err := a.checker.Check(ctx, next)
		for _, f := range fs[:min(len(fs), maxFindings)] {
			f.Check, f.Detail, f.Try = oneLine(f.Check), oneLine(f.Detail), oneLine(f.Try)
			switch f.Result {
			case driver.OK, driver.Warning, driver.Failed:
			default:
				f.Result = driver.Unchecked
			}
			x.Findings = append(x.Findings, f)
		}
		return err
	})
	switch KindOf(err) {
	case driver.NotSupported: // by what is behind the provider
		x.Findings = append(x.Findings, driver.Finding{
			Area: driver.AreaLimit, Check: "permissions and limits", Result: driver.Unchecked, Detail: oneLine(err.Error()),
		})
	default:
		x.Err = err
	}
	return x
}

// capabilities is a description in words.
func capabilities(d driver.Description) string {
	var can, cannot []string
	for _, c := range []struct {
		has  bool
		name string
	}{
		{d.MirrorSplit, "mirror split"}, {d.Snapshot, "snapshot of its own"}, {d.GroupOrdered, "several volumes at one instant"},
		{d.Arm, "arm"}, {d.Changes, "changed regions"}, {d.Resync, "resync"}, {d.Revert, "revert"}, {d.Break, "break"}, {d.Rewrite, "recovery in place"},
	} {
		if c.has {
			can = append(can, c.name)
		} else {
			cannot = append(cannot, c.name)
		}
	}
	s := strings.TrimSpace(d.Provider+" "+d.Version) + ": " + strings.Join(can, ", ")
	if d.MaxGroup > 0 {
		s += fmt.Sprintf(" (at most %d)", d.MaxGroup)
	}
	if len(cannot) > 0 {
		s += "; not: " + strings.Join(cannot, ", ")
	}
	return oneLine(s)
}

// oneLine makes a provider's text printable and of bounded length.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " "))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}
