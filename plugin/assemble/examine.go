package assemble

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/plugin/cli"
)

// examine looks at the arrays of a configuration, each within its own time, so
// that one that hangs keeps nobody from hearing of the others.
func examine(ctx context.Context, o cli.ExamineOptions, getenv func(string) string) ([]cli.Examination, error) {
	cs := []ArrayConfig{{Name: typeEmbedded, Type: typeEmbedded, Socket: o.Socket}}
	if o.Config != "" {
		c, err := Load(o.Config, getenv)
		if err != nil {
			return nil, err
		}
		cs = c.Arrays
	}
	out := make([]cli.Examination, len(cs))
	var wg sync.WaitGroup
	for i, c := range cs {
		wg.Go(func() {
			out[i] = cli.Examination{Type: c.Type, Socket: c.Socket, Examination: examineArray(ctx, i, c, o)}
		})
	}
	wg.Wait()
	return out, nil
}

func examineArray(ctx context.Context, i int, c ArrayConfig, o cli.ExamineOptions) arrays.Examination {
	ctx, cancel := context.WithTimeout(ctx, o.Limit)
	defer cancel()
	began := time.Now()
	a, end, err := openArray(ctx, i, c, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return silent(c.Name, began, err)
	}
	if end != nil {
		defer end() //nolint:errcheck // it has said what it had to say
	}
	return a.Examine(ctx, nextVolumes(ctx, a, o.Disks, o.Limit/2))
}

// silent is the examination of an array that could not be opened.
func silent(name string, began time.Time, err error) arrays.Examination {
	return arrays.Examination{Array: name, Took: time.Since(began).Milliseconds(), Err: err, Findings: []driver.Finding{
		{Area: driver.AreaReach, Check: "answers", Result: driver.Failed, Detail: err.Error()},
	}}
}

// nextVolumes are the array's volumes under disks. Those that it can't be asked
// for within limit are left out: whether it answers is told by what comes next.
func nextVolumes(ctx context.Context, a *arrays.Array, disks []orchestrator.Disk, limit time.Duration) []driver.VolumeID {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var next []driver.VolumeID
	for _, d := range disks {
		v, err := a.Resolve(ctx, driver.Disk{NAA: d.NAA, Serial: d.Serial, IQN: d.IQN, LUN: d.LUN, Portal: d.Portal, Path: d.Path})
		switch {
		case err == nil && !slices.Contains(next, v.ID):
			next = append(next, v.ID)
		case arrays.KindOf(err) == driver.Unreachable:
			return next
		}
	}
	return next
}

// askLimit is how long an array without a quicker question may take.
const askLimit = 30 * time.Second

// askByExamining is for arrays that have no shorter account of themselves.
func askByExamining(ctx context.Context, i int, c ArrayConfig) cli.Array {
	x := cli.Array{Name: c.Name, Type: c.Type, State: cli.ArrayOK}
	e := examineArray(ctx, i, c, cli.ExamineOptions{Limit: askLimit})
	if e.Err != nil {
		x.State, x.Detail, x.Err = cli.ArraySilent, e.Err.Error(), e.Err
		return x
	}
	var problems []string
	for _, f := range e.Findings {
		if f.Result == driver.Failed {
			problems = append(problems, f.Check+": "+f.Detail)
		}
	}
	if len(problems) > 0 {
		x.State, x.Detail = cli.ArrayProblems, strings.Join(problems, "; ")
	}
	return x
}
