package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/spf13/cobra"
)

func (a *app) lunInspectCommand() *cobra.Command {
	var from sourceFlags
	c := &cobra.Command{
		Use:   "inspect SRC…",
		Short: "Show partitions, volumes and the snapshots inside them",
		Long: `Show what SRC holds: the virtual disk with the files that it needs and the snapshots that it keeps, partition tables, LVM physical volumes, volume groups and volumes, and the snapshots inside them
with their UUIDs, whether they are valid, and how much they preserve.

What is damaged is listed under findings. If damage hides a part of SRC, the exit status is 1.`,
		Example: `  cleave lun inspect /dev/sdc
  cleave lun inspect iscsi://backup@192.0.2.20/iqn.2026-01.org.example:disk/1 --src-chap-secret-file backup.secret
  cleave lun inspect a.img b.img -o json | jq '.volumeGroups[].volumes[].snapshots'`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.sources(c.Context(), &from, args)
			if err != nil {
				return err
			}
			r, d, err := a.parts.InspectDisks(c.Context(), s)
			if err != nil {
				return lunError(err)
			}
			err = a.print(result{value: r, names: d.Names, text: func(w io.Writer, p *paper) error { return drawReport(w, p, r) }})
			if err == nil && len(d.Damage) > 0 {
				err = hint(d.Damage[0], "what is not damaged can be read all the same; see the findings")
			}
			return err
		},
	}
	from.add(c.Flags())
	return c
}

// drawReport draws the tree of a report, one line a volume.
func drawReport(w io.Writer, p *paper, r *recovery.Report) error {
	t := table{head: []string{"VOLUME", "TYPE", "SIZE", "UUID", "DETAILS"}}
	for _, d := range r.Disks {
		detail := d.Source
		if d.Scheme != "" {
			detail += fmt.Sprintf(", %s table of %d-byte sectors", d.Scheme, d.Sector)
		}
		kind := d.Container
		if d.Variant != "" {
			kind += " " + d.Variant
		}
		t.add(d.Volume, kind, size(d.Size), "", joined(detail, d.FileSystem))
		for _, q := range d.Files {
			t.add("", "  data file", "", "", q)
		}
		for _, q := range d.Parents {
			t.add("", "  parent, "+q.Container, size(q.Size), "", q.File)
		}
		for _, q := range d.Kept {
			made := ""
			if !q.Created.IsZero() {
				made = "made " + clock(q.Created)
			}
			t.add("  "+q.Volume, "snapshot of the container", size(q.Size), "", made)
		}
		for _, q := range d.Partitions {
			t.add("  "+q.Volume, "partition", size(q.Size), q.UUID, joined(q.Label, q.FileSystem))
		}
		for _, q := range d.PVs {
			in := "no volume group"
			if q.Group != "" {
				in = q.Group
			}
			t.add("", "physical volume", size(q.Size), q.UUID, fmt.Sprintf("at byte %d, in %s", q.Offset, in))
		}
	}
	for _, g := range r.Groups {
		t.add(g.Name, "volume group", "", g.UUID, fmt.Sprintf("seqno %d", g.Seqno))
		for _, v := range g.Volumes {
			t.add("  "+v.Volume, v.Type, size(v.Size), v.UUID, joined(v.FileSystem, v.Reason))
			for _, s := range v.Snapshots {
				kind, bytes := "snapshot", v.Size
				if s.Kind == "lvm-thin" {
					kind, bytes = "thin snapshot", s.StoreSize
				}
				t.add("    "+s.Volume, kind, size(bytes), s.UUID, snapshotDetail(s))
			}
		}
	}
	for _, k := range r.Keepers {
		t.add(k.Volume, keeperType(k), size(k.Size), k.UUID, "")
		for _, s := range k.Snapshots {
			t.add("  "+s.Volume, "shadow copy", "", s.UUID, keptDetail(s))
		}
		for _, s := range k.Subvolumes {
			kind := "subvolume"
			if s.ParentUUID != "" {
				kind = "snapshot"
			}
			t.add("  "+s.Volume, kind, "", s.UUID, subvolumeDetail(s))
		}
	}
	p.draw(w, t)
	if len(r.Findings) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nFINDINGS")
	for _, f := range r.Findings {
		fmt.Fprintln(w, "- "+printable(f.Text))
	}
	return nil
}

// joined puts what there is in one line.
func joined(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), ", ")
}

func keeperType(k recovery.KeeperReport) string {
	if k.Kind != "vss" {
		return k.Kind
	}
	return fmt.Sprintf("volume with shadow copies, version %d", k.Version)
}

func subvolumeDetail(s recovery.SubvolumeReport) string {
	d := fmt.Sprintf("%s, generation %d", s.State, s.Generation)
	if s.Origin != "" {
		d += ", of " + s.Origin
	}
	if !s.Created.IsZero() {
		d += ", made " + clock(s.Created)
	}
	if s.ReadOnly {
		d += ", read-only"
	}
	if s.Default {
		d += ", mounted by default"
	}
	return d
}

func keptDetail(s recovery.SnapshotReport) string {
	d := string(s.State)
	if s.State == recovery.Valid {
		d += ", " + size(s.Preserved) + " preserved"
	}
	if !s.Created.IsZero() {
		d += ", made " + clock(s.Created)
	}
	return d
}

func snapshotDetail(s recovery.SnapshotReport) string {
	if s.State != recovery.Valid {
		return string(s.State)
	}
	d := fmt.Sprintf("%s, %s preserved, store %.2f %% used, chunks of %s", s.State, size(s.Preserved), s.UsedPercent, size(s.ChunkSize))
	if s.Kind == "lvm-thin" { // what it shares with others counts
		d = fmt.Sprintf("%s, %s mapped (%.2f %%), blocks of %s", s.State, size(s.Preserved), s.UsedPercent, size(s.ChunkSize))
	}
	if !s.Created.IsZero() {
		d += ", made " + clock(s.Created)
	}
	if s.Merging {
		d += ", being merged"
	}
	return d
}
