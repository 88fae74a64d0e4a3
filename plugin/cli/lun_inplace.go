package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/recovery"
)

// InPlaceOptions is what `cleave lun recover --in-place` was told.
type InPlaceOptions struct {
	Sources   LUNSources
	Snapshots []string // by UUID or name; none: every volume that has exactly one
	// DiscardOthers agrees that other snapshots of the same volumes go.
	DiscardOthers bool
	// Journal is the file for what is staged, "" where that is left to who
	// recovers.
	Journal string
	// PlanOnly stops before the first write.
	PlanOnly bool
}

// InPlacePlan is what a recovery in place is about to do.
type InPlacePlan struct {
	Volumes   []recovery.Recovered
	Discarded []string
	Resumed   bool
	Done      bool // an earlier run came to its end
	Bytes     int64
	Journal   string         // the file, if there is one
	Rewritten [][]lun.Extent // by source
	Warnings  []error
}

// recoverInPlace writes snapshots over their volumes.
func (a *app) recoverInPlace(ctx context.Context, o InPlaceOptions) error {
	var plan *InPlacePlan
	var p *lunProgress
	err := a.parts.RecoverInPlace(ctx, o, func(got *InPlacePlan) error {
		plan = got
		for _, w := range plan.Warnings {
			say(a.Err, "warning", w.Error())
		}
		if plan.Resumed && !o.PlanOnly {
			say(a.Err, "cleave", "an earlier recovery was interrupted: going on with it")
		}
		p = newLunProgress(a.Streams, "in place", plan.Bytes)
		return nil
	}, func(n int64) { p.update(n) })
	if p != nil {
		p.end()
	}
	switch {
	case errors.Is(err, recovery.ErrDiscards):
		return hint(&hinted{err: err, is: errUsage}, "--discard-others agrees to that; --serve and --to leave SRC as it is")
	case errors.Is(err, recovery.ErrJournal):
		return hint(&hinted{err: err, is: errUsage}, "--journal FILE names it, on a file system that outlives a crash and has room for what is preserved; --serve and --to leave SRC as it is")
	case errors.Is(err, lun.ErrReadOnly):
		return hint(err, "--serve and --to leave SRC as it is")
	case err != nil && plan != nil && plan.staged():
		return hint(lunError(err), "%s, if it is there, is needed: with it the same command goes on where it was, without it SRC may be lost", plan.Journal)
	case err != nil && plan != nil:
		return hint(lunError(err), "nothing is lost: the same command goes on where it was; every view of SRC shows the recovered volumes")
	case err != nil:
		return lunError(err)
	}
	return a.print(inPlaceResult(plan, o))
}

// staged reports whether the recovery goes by way of a redo journal.
func (p *InPlacePlan) staged() bool {
	return p.Journal != "" && slices.ContainsFunc(p.Volumes, func(v recovery.Recovered) bool { return v.Staged })
}

// extent is a run of bytes in JSON.
type extent struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

func inPlaceResult(plan *InPlacePlan, o InPlaceOptions) result {
	type source struct {
		Source    string   `json:"source"`
		Rewritten []extent `json:"rewritten"`
	}
	var sources []source
	for i, list := range plan.Rewritten {
		s := source{Source: o.Sources.Paths[i], Rewritten: []extent{}}
		for _, e := range list {
			s.Rewritten = append(s.Rewritten, extent{e.Off, e.Len})
		}
		sources = append(sources, s)
	}
	var names []string
	for _, v := range plan.Volumes {
		names = append(names, v.Volume)
	}
	state := "recovered"
	switch {
	case plan.Done:
		state = "done before"
	case o.PlanOnly:
		state = "planned"
	}
	return result{
		value: ordered{{"version", 1}, {"state", state}, {"resumed", plan.Resumed}, {"volumes", some(plan.Volumes)},
			{"discarded", some(plan.Discarded)}, {"bytes", plan.Bytes}, {"sources", sources}},
		names: names,
		text: func(w io.Writer, p *paper) error {
			for _, v := range plan.Volumes {
				what := fmt.Sprintf("%s  %s", state, printable(v.Volume))
				switch {
				case plan.Done:
					what += fmt.Sprintf(" from %s: nothing left to do", printable(v.Snapshot))
				case v.Mode == recovery.Rename:
					what += fmt.Sprintf(" from %s: they have exchanged their names", printable(v.Snapshot))
				case v.Mode == recovery.Delete:
					what += fmt.Sprintf(" from %s: LVM deletes the volume's own thin device at the next activation", printable(v.Snapshot))
				default:
					what += fmt.Sprintf(" from %s: %d chunks, %s", printable(v.Snapshot), v.Exceptions, size(v.Preserved))
				}
				fmt.Fprintln(w, what)
			}
			for _, d := range plan.Discarded {
				fmt.Fprintf(w, "discarded  %s\n", printable(d))
			}
			return nil
		},
	}
}
