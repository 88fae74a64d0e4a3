package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// RescanOptions is what `cleave array rescan` was told. Empty fields leave the
// configuration's word.
type RescanOptions struct {
	Config string
	State  string
	Pools  map[string]string // directory by name
	DryRun bool              // change nothing
}

// Rescan is what was found in an array's pools. Sizes are bytes.
type Rescan struct {
	Array     string            `json:"array"` // its identity
	Volumes   []RescannedVolume `json:"volumes"`
	Snapshots []RescannedSplit  `json:"snapshots"`
	LeftOver  []string          `json:"leftOver"` // files that belong to nothing
	Notes     []string          `json:"notes"`    // what is missing, what was passed over
	Written   bool              `json:"written"`  // the catalogue was made
}

// RescannedVolume is a volume that was found. The first mirror in sync is the
// one that the others are made equal to.
type RescannedVolume struct {
	Name    string            `json:"name"`
	ID      string            `json:"id"`
	Size    int64             `json:"size"`
	Mirrors []RescannedMirror `json:"mirrors"`
}

// RescannedMirror is a mirror of it.
type RescannedMirror struct {
	ID    string `json:"id"`
	Pool  string `json:"pool"`
	State string `json:"state"` // in-sync, filling, broken
}

// RescannedSplit is a snapshot that was found.
type RescannedSplit struct {
	ID     string `json:"id"`
	Tag    string `json:"tag"`
	Volume string `json:"volume"`
	Pool   string `json:"pool"`
}

func (a *app) arrayRescanCommand() *cobra.Command {
	var o RescanOptions
	var pools []string
	c := &cobra.Command{
		Use:   "rescan",
		Short: "Rebuild a lost catalogue from the pools alone",
		Long: `Rebuild the catalogue of an array from what lies in its pools, when the state
directory is lost. Every volume's files say beside them what they are of. It is
for an array that does not run, and is refused where there is a catalogue: that
one knows more than the pools do.

Name all pools, each by the name that it had. What a pool that is left out holds
is not found; --dry-run shows what would come of it and changes nothing.

Volumes come back with their names, identities, sizes and mirrors, snapshots with
their tags. At the next ` + "`cleave array`" + ` mirrors that were in sync are compared and
made equal while they are in use, from the one that is listed first.

Not in the pools, and therefore not restored, is what target.json in the state
directory had: which initiators may log in and with which secrets, who sees which
LUN, LUN numbers, persistent reservations; nor events, consents, and what changed
since snapshots were split, so that their resync copies all. Log hosts out before
volumes are exposed anew: LUN numbers are given from 1 again, and a host that
still knows an old one would find another volume under it.`,
		Example: `  cleave array rescan --state /var/lib/cleave/array --pool a=/srv/a --pool b=/srv/b --dry-run
  cleave array rescan --config /etc/cleave/cleave.yaml`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if o.Pools, err = poolFlags(pools); err != nil {
				return err
			}
			found, err := a.parts.Rescan(c.Context(), o)
			if err != nil {
				return err
			}
			return a.print(rescanResult(found))
		},
	}
	f := c.Flags()
	f.StringVar(&o.Config, "config", a.env("CLEAVE_CONFIG"), "configuration file (YAML)")
	f.StringVar(&o.State, "state", "", "directory of the array's own records, as `cleave array` is given")
	f.StringArrayVar(&pools, "pool", nil, "pool as NAME=DIRECTORY; repeat it for all there are")
	f.BoolVar(&o.DryRun, "dry-run", false, "show what would be found, and change nothing")
	return c
}

func rescanResult(x Rescan) result {
	var names []string
	for _, v := range x.Volumes {
		names = append(names, v.Name)
	}
	r := result{names: names, value: struct {
		Version int `json:"version"`
		Rescan
	}{1, x}}
	r.text = func(w io.Writer, p *paper) error {
		fmt.Fprintf(w, "%-10s %s\n", "array", printable(x.Array))
		volumes := table{head: []string{"VOLUME", "SIZE", "MIRRORS", "+ID"}}
		for _, v := range x.Volumes {
			var mirrors []string
			for _, m := range v.Mirrors {
				mirrors = append(mirrors, m.Pool+" "+m.State)
			}
			volumes.add(v.Name, size(v.Size), strings.Join(mirrors, ", "), v.ID)
		}
		section(w, p, volumes)
		splits := table{head: []string{"SNAPSHOT", "VOLUME", "POOL", "TAG"}}
		for _, s := range x.Snapshots {
			splits.add(s.ID, s.Volume, s.Pool, s.Tag)
		}
		section(w, p, splits)
		lines := table{head: []string{"LEFT OVER"}}
		for _, f := range x.LeftOver {
			lines.add(f)
		}
		section(w, p, lines)
		lines = table{head: []string{"NOTE"}}
		for _, n := range x.Notes {
			lines.add(n)
		}
		section(w, p, lines)
		if x.Written {
			fmt.Fprintln(w, "\nthe catalogue was made: start `cleave array`, then add initiators and expose volumes anew")
		} else {
			fmt.Fprintln(w, "\nnothing was changed")
		}
		return nil
	}
	return r
}
