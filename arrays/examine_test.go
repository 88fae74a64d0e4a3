package arrays_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// checked is a fake that says what it is told to.
type checked struct {
	fake
	check func(context.Context, []driver.VolumeID) ([]driver.Finding, error)
}

func (c *checked) Check(ctx context.Context, next []driver.VolumeID) ([]driver.Finding, error) {
	return c.check(ctx, next)
}

func TestExamine(t *testing.T) {
	d := &checked{check: func(_ context.Context, next []driver.VolumeID) ([]driver.Finding, error) {
		return []driver.Finding{
			driver.Room("snapshots", driver.Limit{Unit: "snapshots", Used: 9, Most: 10, Next: int64(len(next))}, "ask for more"),
			{Area: driver.AreaHealth, Check: "two\nlines", Result: "nonsense", Detail: "\x1b[31m" + strings.Repeat("x", 9999)},
		}, nil
	}}
	x := arrays.New("x", d, arrays.Options{}).Examine(t.Context(), []driver.VolumeID{"a", "b"})
	if x.Err != nil || x.Array != "x" || len(x.Findings) != 4 || x.Findings[0].Result != driver.OK {
		t.Fatalf("%+v", x)
	}
	if f := x.Findings[2]; f.Result != driver.Failed || f.Try != "ask for more" || f.Detail != "9 of 10 snapshots used, 1 left, the next set needs 2" {
		t.Errorf("a limit without room: %+v", f)
	}
	if f := x.Findings[3]; f.Check != "two lines" || f.Result != driver.Unchecked || len(f.Detail) > 510 || strings.Contains(f.Detail, "\x1b") {
		t.Errorf("what makes no sense: %+v", f)
	}
	x = arrays.New("x", d, arrays.Options{Without: []arrays.Capability{arrays.Check}}).Examine(t.Context(), nil)
	if n := len(x.Findings); x.Err != nil || n != 3 || x.Findings[2].Result != driver.Unchecked {
		t.Errorf("without the option: %+v", x)
	}
}

func TestExamineOfWhatDoesNotAnswer(t *testing.T) {
	for name, check := range map[string]func(context.Context, []driver.VolumeID) ([]driver.Finding, error){
		"heeds its context": func(ctx context.Context, _ []driver.VolumeID) ([]driver.Finding, error) {
			<-ctx.Done()
			return nil, driver.Errorf(driver.Unreachable, "no answer: %w", ctx.Err())
		},
		"hangs": func(context.Context, []driver.VolumeID) ([]driver.Finding, error) {
			time.Sleep(time.Hour)
			return nil, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				began := time.Now()
				x := arrays.New("x", &checked{check: check}, arrays.Options{}).Examine(ctx, nil)
				if took := time.Since(began); took > 11*time.Second {
					t.Errorf("it took %v", took)
				}
				if arrays.KindOf(x.Err) != driver.Unreachable || x.Findings[0].Result != driver.Failed || !strings.Contains(x.Findings[0].Detail, "no answer") {
					t.Errorf("%+v", x)
				}
				time.Sleep(time.Hour) // what hangs ends
			})
		})
	}
}

func TestLimits(t *testing.T) {
	for _, x := range []struct {
		l    driver.Limit
		says string
		want driver.Result
	}{
		{driver.Limit{Unit: "bytes", Used: 1 << 30, Most: 100 << 30, Next: 3 << 29}, "1 GiB of 100 GiB used, 99 GiB left, the next set needs 1.5 GiB", driver.OK},
		{driver.Limit{Unit: "bytes", Used: 95 << 30, Most: 100 << 30}, "95 GiB of 100 GiB used, 5 GiB left, the next set needs 0 B", driver.Warning},
		{driver.Limit{Unit: "volumes", Used: 7, Most: -1, Next: 2}, "7 volumes used, without a limit, the next set needs 2", driver.OK},
		{driver.Limit{Unit: "volumes", Used: 12, Most: 10, Next: 0}, "12 of 10 volumes used, 0 left, the next set needs 0", driver.Failed},
	} {
		if f := driver.Room("it", x.l, "try"); f.Detail != x.says || f.Result != x.want {
			t.Errorf("%+v: %s %q", x.l, f.Result, f.Detail)
		}
	}
}
