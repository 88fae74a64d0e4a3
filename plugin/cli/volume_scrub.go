package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) volumeScrubCommand() *cobra.Command {
	var repair, wait, stop bool
	c := &cobra.Command{
		Use:   "scrub NAME",
		Short: "Compare a volume's mirrors, and repair them",
		Long: `Compare all mirrors of a volume that are in sync, while it is in use and no
faster than the array copies (resyncRate). Places that are holes in all mirrors
are passed over. The command returns when the scrub has begun: cleave volume show
says how far it is and what it came to, and so do the array's events.

With --repair, what more than half of three or more mirrors hold is copied to the
others. Where there is no such majority nothing is changed; the report says where
mirrors differ and what each held: find out which is right, cleave mirror remove
the wrong one, and add another.

With --wait the command ends with the scrub and prints its report. The exit status
is 1 if differences remain.`,
		Example: `  cleave volume scrub db
  cleave volume scrub db --repair --wait
  cleave volume scrub db --stop`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				if stop {
					return s.StopScrub(c.Context(), args[0])
				}
				v, err := s.StartScrub(c.Context(), args[0], repair)
				if err != nil {
					return err
				}
				if !wait {
					return a.print(volumeResult(v))
				}
				r, err := s.WaitScrub(c.Context(), args[0])
				if err != nil {
					return hint(err, "`cleave volume show %s` says how far it is", args[0])
				}
				if err := a.print(scrubResult(args[0], r)); err != nil {
					return err
				}
				return differs(args[0], r)
			})
		},
	}
	f := c.Flags()
	f.BoolVar(&repair, "repair", false, "copy what the majority of the mirrors holds to the others")
	f.BoolVar(&wait, "wait", false, "end with the scrub, and print its report")
	f.BoolVar(&stop, "stop", false, "end the scrub that is under way")
	c.MarkFlagsMutuallyExclusive("stop", "repair")
	c.MarkFlagsMutuallyExclusive("stop", "wait")
	return c
}

// differs is the error of a scrub that left differences.
func differs(name string, r Scrub) error {
	left := r.Differing - r.Repaired
	if left == 0 {
		return nil
	}
	err := fmt.Errorf("volume %q: its mirrors differ in %d bytes", name, left)
	if !r.Repair && r.Mirrors > 2 {
		return hint(err, "`cleave volume scrub %s --repair` copies what the majority holds", name)
	}
	return hint(err, "no majority says which is right: find out, `cleave mirror remove` the other, and `cleave mirror add` a new one")
}

func scrubResult(name string, r Scrub) result {
	out := result{names: []string{name}}
	out.value = struct {
		Version int    `json:"version"`
		Volume  string `json:"volume"`
		Scrub
	}{1, name, r}
	out.text = func(w io.Writer, p *paper) error {
		fmt.Fprintf(w, "%s: %s\n", printable(name), scrubText(&r))
		if len(r.Differences) == 0 {
			return nil
		}
		t := table{head: []string{"OFFSET", "BYTES", "POOL", "MIRROR", "SHA256", "REPAIRED"}}
		for _, d := range r.Differences {
			for _, m := range d.Mirrors {
				repaired := "no"
				if d.Repaired {
					repaired = "yes"
				}
				t.add(fmt.Sprint(d.Off), fmt.Sprint(d.Len), m.Pool, m.ID, m.SHA256, repaired)
			}
		}
		section(w, p, t)
		if n := r.Places - int64(len(r.Differences)); n > 0 {
			fmt.Fprintf(w, "and at %d places more\n", n)
		}
		return nil
	}
	return out
}

// scrubText is a scrub in one line; empty if there was none.
func scrubText(r *Scrub) string {
	if r == nil {
		return ""
	}
	s := fmt.Sprintf("%s of each of %d mirrors compared", size(r.Compared), r.Mirrors)
	switch {
	case r.Ended.IsZero():
		s = fmt.Sprintf("at %s of %s", size(r.Done), size(r.Size))
		if r.Remaining > 0 {
			s += fmt.Sprintf(", %s left", r.Remaining.Round(time.Second))
		}
	case r.Reason != "":
		return fmt.Sprintf("ended early at %s: %s", clock(r.Ended), r.Reason)
	default:
		s += " by " + clock(r.Ended)
	}
	if r.Differing == 0 {
		return s + ", no difference"
	}
	return s + fmt.Sprintf(", %d bytes differed at %d places, %d bytes repaired", r.Differing, r.Places, r.Repaired)
}
