package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/spf13/cobra"
)

func lunInspectCommand(s Streams) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "inspect SRC…",
		Short: "Show partitions, volumes and the snapshots inside them",
		Long: `Show what SRC holds: partition tables, LVM physical volumes, volume groups and volumes, and the snapshots inside them
with their UUIDs, whether they are valid, and how much they preserve.

What is damaged is listed under findings. If damage hides a part of SRC, the exit status is 1.`,
		Example: `  cleave lun inspect /dev/sdc
  cleave lun inspect a.img b.img -o json | jq '.volumeGroups[].volumes[].snapshots'`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return usagef("-o %s: choose table or json", output)
			}
			return withContents(c.Context(), args, func(contents *open.Contents) error {
				r, err := recovery.Inspect(c.Context(), contents)
				if err != nil {
					return err
				}
				if output == "json" {
					enc := json.NewEncoder(s.Out)
					enc.SetIndent("", "  ")
					err = enc.Encode(r)
				} else {
					err = printReport(s.Out, r)
				}
				if err == nil && len(contents.Damage) > 0 {
					err = hint(contents.Damage[0], "the undamaged parts can be read all the same; see the findings")
				}
				return err
			})
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

// printReport prints the tree of a report, one line a volume.
func printReport(w io.Writer, r *recovery.Report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, c)
		}
		fmt.Fprintln(tw)
	}
	row("VOLUME", "TYPE", "SIZE", "UUID", "DETAILS")
	for _, d := range r.Disks {
		detail := d.Source
		if d.Scheme != "" {
			detail += fmt.Sprintf(", %s table of %d-byte sectors", d.Scheme, d.Sector)
		}
		row(d.Volume, d.Container, lunSize(d.Size), "", detail)
		for _, p := range d.Partitions {
			row("  "+p.Volume, "partition", lunSize(p.Size), p.UUID, p.Label)
		}
		for _, p := range d.PVs {
			row("  -", "physical volume", lunSize(p.Size), p.UUID, fmt.Sprintf("at byte %d, in %s", p.Offset, orNone(p.Group)))
		}
	}
	for _, g := range r.Groups {
		row(g.Name, "volume group", "", g.UUID, fmt.Sprintf("seqno %d", g.Seqno))
		for _, v := range g.Volumes {
			row("  "+v.Volume, v.Type, lunSize(v.Size), v.UUID, v.Reason)
			for _, s := range v.Snapshots {
				row("    "+s.Volume, "snapshot", lunSize(v.Size), s.UUID, snapshotDetail(s))
			}
		}
	}
	if len(r.Findings) > 0 {
		fmt.Fprintln(tw, "\nFINDINGS")
		for _, f := range r.Findings {
			fmt.Fprintln(tw, "- "+f.Text)
		}
	}
	return tw.Flush()
}

func snapshotDetail(s recovery.SnapshotReport) string {
	if s.State != recovery.Valid {
		return string(s.State)
	}
	d := fmt.Sprintf("%s, %s preserved, store %.2f %% used, chunks of %s", s.State, lunSize(s.Preserved), s.UsedPercent, lunSize(s.ChunkSize))
	if !s.Created.IsZero() {
		d += ", made " + s.Created.Format("2006-01-02T15:04:05Z")
	}
	if s.Merging {
		d += ", being merged"
	}
	return d
}

func orNone(s string) string {
	if s == "" {
		return "no volume group"
	}
	return s
}
