package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
)

func (a *app) volumeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "volume",
		Aliases: []string{"vol"},
		Short:   "Make and manage volumes of the embedded array",
		Long: `Volumes of the embedded array. Each has mirrors: plain files in pools that are
kept equal. A snapshot set splits one of them off.`,
		Example: `  cleave volume create db --size 20GiB
  cleave volume expose db --to iqn.1993-08.org.debian:01:host1
  cleave volume list`,
	}
	c.AddCommand(a.volumeCreateCommand(), a.volumeListCommand(), a.volumeShowCommand(), a.volumeResizeCommand(), a.volumeSetCommand(), a.volumeScrubCommand(),
		a.volumeDeleteCommand(), a.volumeExposeCommand(), a.volumeUnexposeCommand())
	return c
}

// inSync counts the mirrors of v that are synchronised.
func inSync(v Volume) int {
	n := 0
	for _, m := range v.Mirrors {
		if m.State == string(driver.Synchronized) {
			n++
		}
	}
	return n
}

func volumesResult(vs []Volume) result {
	var names []string
	for _, v := range vs {
		names = append(names, v.Name)
	}
	return result{value: list("volumes", vs), names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"NAME", "SIZE", "STATE", "MIRRORS", "SPLITS", "BY", "LUN", "+NAA", "+USED BY", "INITIATORS"}}
		for _, v := range vs {
			lun, who := "", ""
			if v.LUN != nil {
				lun = fmt.Sprint(v.LUN.LUN)
				who = strings.Join(v.LUN.Initiators, ",")
			}
			t.add(v.Name, size(v.Size), v.State, fmt.Sprintf("%d/%d", inSync(v), v.Wanted), fmt.Sprint(len(v.Snapshots)), v.Policy, lun, v.NAA,
				strings.Join(v.UsedBy, ","), who)
		}
		p.draw(w, t)
		return nil
	}}
}

// volumeResult is one volume in full.
func volumeResult(v Volume) result {
	r := volumesResult([]Volume{v})
	r.value = struct {
		Version int `json:"version"`
		Volume
	}{1, v}
	r.text = func(w io.Writer, p *paper) error {
		line := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "%-10s %s\n", name, printable(value))
			}
		}
		line("volume", v.Name)
		line("id", v.ID)
		line("size", fmt.Sprintf("%s (%d bytes)", size(v.Size), v.Size))
		line("state", v.State)
		line("naa", v.NAA)
		line("created", clock(v.Created))
		if !v.UnmirroredSince.IsZero() {
			line("unmirrored", clock(v.UnmirroredSince))
		}
		line("splits by", v.Policy)
		line("splits", strings.Join(v.Snapshots, ", "))
		line("used by", strings.Join(v.UsedBy, ", "))
		line("scrub", scrubText(v.Scrub))
		if v.LUN != nil {
			l := orchestrator.LUN{Portals: v.LUN.Portals, IQN: v.LUN.IQN, LUN: v.LUN.LUN}
			line("url", iscsiURL(l))
			line("seen by", strings.Join(v.LUN.Initiators, ", "))
		}
		section(w, p, mirrorTable([]Volume{v}))
		return nil
	}
	return r
}

// findVolume returns the volume of that name.
func findVolume(vs []Volume, name string) (Volume, error) {
	i := slices.IndexFunc(vs, func(v Volume) bool { return v.Name == name || v.ID == name })
	if i < 0 {
		return Volume{}, hint(fmt.Errorf("volume %q: %w", name, orchestrator.ErrNotFound), "`cleave volume list` shows them")
	}
	return vs[i], nil
}
