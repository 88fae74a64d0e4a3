package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
)

// setResult shows a set: what was reached first, then how to get at it, then
// the timeline.
func setResult(s orchestrator.Set) result {
	return result{value: s, names: []string{string(s.ID)}, text: func(w io.Writer, p *paper) error {
		fmt.Fprintf(w, "Snapshot set %s is %s", s.ID, p.paint(string(s.State)))
		if s.Reason != "" {
			fmt.Fprintf(w, ": %s", printable(s.Reason))
		}
		fmt.Fprintf(w, "\nCreated %s", clock(s.Created))
		if !s.Expires.IsZero() && !s.State.Final() {
			fmt.Fprintf(w, ", expires %s", clock(s.Expires))
		}
		fmt.Fprintln(w)
		if s.Request.Note != "" {
			fmt.Fprintf(w, "Note: %s\n", printable(s.Request.Note))
		}
		section(w, p, vmTable(s.VMs))
		section(w, p, guestTable(s.VMs))
		section(w, p, writerTable(s.VMs))
		section(w, p, splitTable(s.Splits))
		section(w, p, hostedTable(s.Splits))
		section(w, p, inPlaceTable(s.Splits))
		section(w, p, turnedTable(s.Splits))
		section(w, p, lunTable(s.LUNs))
		section(w, p, timeline(s))
		if p.wide {
			evidence(w, s.VMs)
		}
		return nil
	}}
}

// planResult shows what a dry run found.
func planResult(s orchestrator.Set) result {
	var names []string
	for _, v := range s.VMs {
		names = append(names, v.Name)
	}
	return result{value: s, names: names, text: func(w io.Writer, p *paper) error {
		fmt.Fprintln(w, "Dry run: nothing was touched.")
		t := table{head: []string{"VM", "CLASS", "ASKED", "BEST", "VOLUMES", "REASON"}}
		for _, v := range s.VMs {
			t.add(v.Name, string(v.Verdict.Class), v.Asked.String(), v.Verdict.Best.String(), strings.Join(v.Verdict.Volumes, ","), v.Verdict.Reason)
		}
		section(w, p, t)
		fmt.Fprintln(w, "\nA run would")
		for i, step := range plannedCalls(s) {
			fmt.Fprintf(w, "%3d. %s\n", i+1, printable(step))
		}
		return nil
	}}
}

// plannedCalls says in words and in order what a run of s would do.
func plannedCalls(s orchestrator.Set) []string {
	var guests, pauses, volumes, mounts []string
	seen := map[string]bool{}
	for _, v := range s.VMs {
		switch {
		case v.Verdict.How == orchestrator.ByGuest, v.Verdict.How == "" && v.Verdict.Class == orchestrator.NoDowntime:
			guests = append(guests, v.Name)
		case v.Verdict.How == orchestrator.ByPause, v.Verdict.How == "" && v.Verdict.Class == orchestrator.SomeDowntime:
			pauses = append(pauses, v.Name)
		}
		for _, vol := range v.Verdict.Volumes {
			if !seen[vol] {
				seen[vol] = true
				volumes = append(volumes, vol)
			}
		}
	}
	for _, v := range s.VMs {
		for _, d := range v.Disks {
			if d.Host != nil && d.Host.Mount != "" && !slices.Contains(mounts, d.Host.Mount) {
				mounts = append(mounts, d.Host.Mount)
			}
		}
	}
	vols := strings.Join(volumes, ", ")
	steps := []string{"bring the mirrors of " + vols + " into sync (minutes, nothing is held)"}
	for _, g := range guests {
		steps = append(steps, fmt.Sprintf("have the guest of VM %s snapshot its own volumes, within %s", g, orDefault(s.Request.GuestLimit, 2*time.Minute)))
	}
	if len(mounts) > 0 {
		steps = append(steps, "flush what this host has mounted at "+strings.Join(mounts, ", "))
	}
	for _, v := range pauses {
		steps = append(steps, fmt.Sprintf("pause VM %s, for %s at the most", v, orDefault(s.Request.PauseLimit, 10*time.Second)))
	}
	steps = append(steps, "split "+vols+" at one instant")
	for _, v := range pauses {
		steps = append(steps, "resume VM "+v)
	}
	for _, g := range guests {
		steps = append(steps, fmt.Sprintf("find the snapshots of VM %s in the split by UUID, drop them in the guest, and recover them as a view", g))
	}
	who := "to nobody yet"
	if len(s.Request.Initiators) > 0 {
		who = "to " + strings.Join(s.Request.Initiators, ", ")
	}
	steps = append(steps, "show the LUNs "+who,
		fmt.Sprintf("give everything back when the set is deleted, or after %s", orDefault(s.Request.Lease, 24*time.Hour)))
	for _, v := range s.VMs {
		for _, d := range v.Disks {
			if d.FullCopy {
				steps = append(steps, fmt.Sprintf("copy the volume under disk %s of VM %s in full, into a new mirror, before the next set: its split does not come back", d.Device, v.Name))
			}
		}
	}
	return steps
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

func vmTable(vms []orchestrator.VMResult) table {
	t := table{head: []string{"VM", "CLASS", "ASKED", "REACHED", "PAUSE", "WHY"}}
	for _, v := range vms {
		pause := ""
		if v.Pause != nil {
			pause = short(v.Pause.For)
			if v.Pause.ByGuard {
				pause += " (ended by its guard)"
			}
		}
		t.add(v.Name, string(v.Verdict.Class), v.Asked.String(), v.Reached.String(), pause, v.Why)
	}
	return t
}

func guestTable(vms []orchestrator.VMResult) table {
	t := table{head: []string{"GUEST VOLUME", "VM", "KIND", "REACHED", "FOUND", "+MODE", "+UUID", "+SNAPSHOT", "WHY"}}
	for _, v := range vms {
		for _, g := range v.Volumes {
			t.add(g.Name, v.Name, g.Kind, g.Reached.String(), yes(g.Found), g.Mode, g.UUID, g.Snapshot, g.Why)
		}
	}
	return t
}

func writerTable(vms []orchestrator.VMResult) table {
	t := table{head: []string{"APPLICATION", "VM", "STATE", "METHOD", "VOLUMES", "+RESTORE", "ERROR"}}
	for _, v := range vms {
		for _, x := range v.Writers {
			t.add(strings.TrimSpace(x.App+" "+x.Version), v.Name, x.State, x.Method, strings.Join(x.Volumes, ","), x.Restore, x.Error)
		}
	}
	return t
}

func splitTable(splits []orchestrator.Split) table {
	t := table{head: []string{"SPLIT", "VOLUME", "SIZE", "METHOD", "AT", "HELD", "REACHED", "+GROUP", "+NAA"}}
	for _, s := range splits {
		held := ""
		if s.Held > 0 {
			held = short(s.Held)
		}
		t.add(s.ID, s.Array+"/"+s.Volume, size(s.Size), s.Method, fine(s.At), held, s.Reached.String(), s.Group, s.NAA)
	}
	return t
}

// hostedTable lists the virtual disks that lie on the splits of hosts' volumes.
func hostedTable(splits []orchestrator.Split) table {
	t := table{head: []string{"VIRTUAL DISK", "ON", "WHERE", "FORMAT", "SIZE", "CONTAINER", "REACHED", "WHY"}}
	for _, s := range splits {
		for _, d := range s.Disks {
			where := d.Host.Path
			if where == "" {
				where = d.Host.Volume
			}
			held, bytes := "not looked at", ""
			if c := d.Host.Container; c != nil {
				bytes = size(c.Size)
				switch {
				case c.Problem != "":
					held, bytes = "can't be read", ""
				case c.Dirty:
					held = "whole, was in use"
				default:
					held = "whole"
				}
			}
			t.add(d.VM+"/"+d.Device, s.Array+"/"+s.Volume, where, d.Host.Format, bytes, held, d.Reached.String(), d.Why)
		}
	}
	return t
}

func lunTable(luns []orchestrator.LUN) table {
	t := table{head: []string{"LUN", "CONTENT", "URL", "ACCESS", "+NAA", "+NBD", "+DEVICES"}}
	for _, l := range luns {
		content, access := "dirty split", "read-only"
		switch {
		case l.Clean:
			content = "recovered"
		case l.Hosted:
			content = "as it came off"
		}
		if l.Writable {
			access = "writable"
		}
		if len(l.Portals) == 0 {
			access = "seen by nobody"
		}
		t.add(l.Name, content, iscsiURL(l), access, l.NAA, nbdURL(l), strings.Join(l.Devices, ","))
	}
	return t
}

// timeline lists the steps as they began. Guests' clocks are not the host's, so
// each line says whose it is.
func timeline(s orchestrator.Set) table {
	t := table{head: []string{"CLOCK", "FROM", "TOOK", "VM", "STEP", "ERROR"}}
	steps := slices.Clone(s.Steps)
	slices.SortStableFunc(steps, func(a, b orchestrator.Step) int { return a.From.Compare(b.From) })
	for _, st := range steps {
		took := ""
		if !st.To.IsZero() {
			took = short(st.To.Sub(st.From))
		}
		t.add(st.Clock, fine(st.From), took, st.VM, st.Name, st.Error)
	}
	return t
}

func evidence(w io.Writer, vms []orchestrator.VMResult) {
	for _, v := range vms {
		if len(v.Evidence) == 0 {
			continue
		}
		fmt.Fprintf(w, "\nEvidence for VM %s\n", printable(v.Name))
		for _, e := range v.Evidence {
			fmt.Fprintf(w, "  - %s\n", printable(e))
		}
	}
}

// iscsiURL is the form that libiscsi, QEMU and others read:
// iscsi://portal/iqn/lun. Empty if nobody may see it.
func iscsiURL(l orchestrator.LUN) string {
	if len(l.Portals) == 0 {
		return ""
	}
	return fmt.Sprintf("iscsi://%s/%s/%d", l.Portals[0], l.IQN, l.LUN)
}
