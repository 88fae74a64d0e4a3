package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func (a *app) mirrorChangesCommand() *cobra.Command {
	var from, to string
	c := &cobra.Command{
		Use:   "changes VOLUME [--from SPLIT] [--to SPLIT]",
		Short: "Show which regions of a volume changed",
		Long: `Show which regions of a volume may differ between two splits of it, or between a
split and now. They cover every byte that differs, rounded to 64 KiB, or more
where there would be over half a million regions (granularity in -o json); what
is written during the call may be left out. -o name prints offset and length, a
region a line, in bytes.`,
		Example: `  cleave mirror changes db --from 0b6c5c3a-0f5e-4d0e-8a52-6c1a9d3f3c77
  cleave mirror changes db --from "$MONDAY" --to "$TUESDAY" -o json | jq .total`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if from == "" && to == "" {
				return hint(usagef("--from or --to is required: the other one is now"), "`cleave mirror status %s` lists its splits", args[0])
			}
			return a.withStorage(func(s Storage) error {
				ch, err := s.Changes(c.Context(), args[0], from, to)
				if err != nil {
					return partHint(err)
				}
				return a.print(changesResult(args[0], from, to, ch))
			})
		},
	}
	c.Flags().StringVar(&from, "from", "", "ID of a split (default: now)")
	c.Flags().StringVar(&to, "to", "", "ID of another (default: now)")
	return c
}

func changesResult(volume, from, to string, ch Changes) result {
	ch.Regions = some(ch.Regions)
	names := make([]string, 0, len(ch.Regions))
	for _, r := range ch.Regions {
		names = append(names, fmt.Sprintf("%d %d", r.Offset, r.Length))
	}
	type points struct {
		Version int    `json:"version"`
		Volume  string `json:"volume"`
		From    string `json:"from,omitempty"` // absent: now
		To      string `json:"to,omitempty"`
		Changes
	}
	return result{value: points{1, volume, from, to, ch}, names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"OFFSET", "LENGTH"}}
		for _, r := range ch.Regions {
			t.add(fmt.Sprint(r.Offset), fmt.Sprint(r.Length))
		}
		if len(t.rows) > 0 {
			p.draw(w, t)
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "total  %s (%d bytes) in %d regions\n", size(ch.Total), ch.Total, len(ch.Regions))
		return nil
	}}
}
