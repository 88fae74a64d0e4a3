package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) mirrorStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [VOLUME]",
		Short: "Show mirrors and splits, and how far copying is",
		Long: `Show how volumes are mirrored and since when they are not, each mirror with its
state and the pace of its copying, and each split with what its resync would
copy, at the most, and how long that takes at the pace of the last one.`,
		Example: `  cleave mirror status
  cleave mirror status db -o wide
  cleave mirror status -o json | jq -r '.splits[] | select(.tag == "before-upgrade").id'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				vs, err := s.Volumes(c.Context())
				if err != nil {
					return err
				}
				ss, err := s.Splits(c.Context())
				if err != nil {
					return err
				}
				if len(args) == 1 {
					v, err := findVolume(vs, args[0])
					if err != nil {
						return err
					}
					vs = []Volume{v}
					ss = slices.DeleteFunc(ss, func(s Split) bool { return s.VolumeID != v.ID })
				}
				return a.print(statusResult(vs, ss))
			})
		},
	}
}

func statusResult(vs []Volume, ss []Split) result {
	slices.SortFunc(ss, func(a, b Split) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), a.At.Compare(b.At), cmp.Compare(a.ID, b.ID))
	})
	r := volumesResult(vs)
	r.value = ordered{{"version", 1}, {"volumes", some(vs)}, {"splits", some(ss)}}
	r.text = func(w io.Writer, p *paper) error {
		p.draw(w, mirroringTable(vs))
		section(w, p, mirrorTable(vs))
		section(w, p, splitsTable(ss))
		return nil
	}
	return r
}

func mirroringTable(vs []Volume) table {
	t := table{head: []string{"VOLUME", "STATE", "MIRRORS", "SPLITS", "UNMIRRORED SINCE", "LEFT", "+TO COMPARE"}}
	for _, v := range vs {
		since, compare := "", ""
		if !v.UnmirroredSince.IsZero() {
			since = clock(v.UnmirroredSince)
		}
		if v.Recovering > 0 {
			compare = size(v.Recovering)
		}
		t.add(v.Name, v.State, fmt.Sprintf("%d/%d", inSync(v), v.Wanted), fmt.Sprint(len(v.Snapshots)), since, left(v.Remaining), compare)
	}
	return t
}

func mirrorTable(vs []Volume) table {
	t := table{head: []string{"MIRROR", "VOLUME", "POOL", "STATE", "COPIED", "PACE", "LEFT", "+FILE", "REASON"}}
	for _, v := range vs {
		for _, m := range v.Mirrors {
			copied, pace := "", ""
			if m.ToCopy > 0 {
				copied = fmt.Sprintf("%s of %s", size(m.Copied), size(m.ToCopy))
			}
			if m.Rate > 0 {
				pace = size(m.Rate) + "/s"
			}
			t.add(m.ID, v.Name, m.Pool, m.State, copied, pace, left(m.Remaining), m.File, m.Reason)
		}
	}
	return t
}

func splitsTable(ss []Split) table {
	t := table{head: []string{"SPLIT", "VOLUME", "TAG", "AT", "POOL", "STATE", "TO RESYNC", "TAKES", "+BY", "+FILE", "+USED BY", "REASON"}}
	for _, s := range ss {
		t.add(s.ID, s.Volume, s.Tag, clock(s.At), s.Pool, s.State, size(s.ResyncBytes), left(s.ResyncTime), s.Method, s.File,
			strings.Join(s.UsedBy, ","), s.Reason)
	}
	return t
}

// left prints an estimate; an estimate of nothing is none.
func left(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return short(d)
}

func splitsResult(ss []Split) result {
	var names []string
	for _, s := range ss {
		names = append(names, s.ID)
	}
	return result{value: list("splits", ss), names: names, text: func(w io.Writer, p *paper) error {
		p.draw(w, splitsTable(ss))
		return nil
	}}
}

// splitResult is one split.
func splitResult(s Split) result {
	r := splitsResult([]Split{s})
	r.value = struct {
		Version int `json:"version"`
		Split
	}{1, s}
	return r
}
