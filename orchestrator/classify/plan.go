// Package classify turns facts about a VM into a verdict: before a set, how
// much downtime its backup costs (Plan); after it, which consistency level the
// evidence proves (Reach). Its functions are pure; they see facts, never
// machines, so that every row of the tables in its tests is a promise.
package classify

import (
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/orchestrator"
)

// Facts is all that is known of a VM before a set.
type Facts struct {
	VM    orchestrator.VM
	Disks []Disk // one for each of VM.Disks, in their order
}

// Disk is where a virtual disk lies.
type Disk struct {
	Array   string
	Volume  string
	Also    []string // further volumes that it lies on, "array/volume"
	Problem string   // why it lies on no volume that an array answers for
	// Hosted: it lies on a host's volume, which it shares.
	Hosted bool
}

// Plan sorts a VM (the patent's determination module, 107). The first rule that
// applies decides.
func Plan(f Facts) orchestrator.Verdict {
	v := orchestrator.Verdict{VM: f.VM.Name, Class: orchestrator.NotPossible, Volumes: volumes(f)}
	if reason := blocked(f); reason != "" {
		v.Reason = reason
		return v
	}
	switch f.VM.Power {
	case orchestrator.Off, orchestrator.Paused:
		v.Class, v.How, v.Best = orchestrator.NoDowntime, orchestrator.ByItself, orchestrator.LevelCrash
		v.Reason = fmt.Sprintf("the VM is %s and stays so; its disks are copied as they are", f.VM.Power)
		return v
	case orchestrator.Running, orchestrator.PowerUnknown: // the latter was blocked above
	}
	if reason := cannotSnapshot(f.VM.Guest); reason != "" {
		v.Class, v.How, v.Best, v.Reason = orchestrator.SomeDowntime, orchestrator.ByPause, orchestrator.LevelCrash, reason
		return v
	}
	v.Class, v.How = orchestrator.NoDowntime, orchestrator.ByGuest
	v.Best, v.Reason = best(f.VM.Guest)
	return v
}

// blocked says why no copy of the VM could be relied on at all.
func blocked(f Facts) string {
	vm := f.VM
	if vm.Problem != "" {
		return vm.Problem
	}
	if vm.Power == orchestrator.PowerUnknown || vm.Power == "" {
		return "its hypervisor does not say whether it runs"
	}
	disks := 0
	for i, d := range vm.Disks {
		if d.ReadOnly {
			continue // a medium that the VM can't change is not part of its state
		}
		disks++
		switch {
		case i >= len(f.Disks):
			return fmt.Sprintf("disk %s: nothing is known of where it lies", d.Device)
		case f.Disks[i].Problem != "":
			return fmt.Sprintf("disk %s: %s", d.Device, f.Disks[i].Problem)
		case d.Cache == "unsafe":
			return fmt.Sprintf("disk %s: cache mode is unsafe: what the guest flushes does not reach the volume", d.Device)
		case d.Backing != "":
			return fmt.Sprintf("disk %s: it has a backing file (%.80q), so what it holds does not lie in one place", d.Device, d.Backing)
		case !f.Disks[i].Hosted && d.Format != "raw":
			return fmt.Sprintf("disk %s: format %s on the volume itself is not recovered; raw is, and any in a file of a host's volume", d.Device, d.Format)
		case Format(d.Format) == "":
			return fmt.Sprintf("disk %s: format %s is not read", d.Device, d.Format)
		}
	}
	if disks == 0 {
		return "it has no disk of its own"
	}
	return ""
}

// Format is the container's format by lun/vdisk's name, from a hypervisor's; "" if
// it is not read.
func Format(hypervisors string) string {
	switch hypervisors {
	case "vpc": // QEMU's word for it
		return "vhd"
	case "raw", "qcow2", "vhd", "vhdx", "vmdk":
		return hypervisors
	}
	return ""
}

// cannotSnapshot says why a running guest can't make its own snapshot. A guest
// that kept silent and one that answered that it can't are told apart.
func cannotSnapshot(g orchestrator.Guest) string {
	switch {
	case g.Requester == "" && g.Silence != "":
		return "no guest requester answers: " + g.Silence
	case g.Requester == "":
		return "no guest requester answers"
	case !g.CanSnapshot && g.Cannot != "":
		return fmt.Sprintf("guest requester %s can't make snapshots: %s", g.Requester, g.Cannot)
	case !g.CanSnapshot:
		return fmt.Sprintf("guest requester %s can't make snapshots", g.Requester)
	}
	for _, v := range g.Volumes {
		if v.Cannot == "" {
			return ""
		}
	}
	return fmt.Sprintf("guest requester %s has no volume that it could snapshot", g.Requester)
}

// best is the best level that a guest which snapshots itself can reach now.
func best(g orchestrator.Guest) (orchestrator.Level, string) {
	can := map[string]string{}
	for _, v := range g.Volumes {
		can[v.Name] = v.Cannot
		if v.Cannot != "" {
			return orchestrator.LevelCrash, fmt.Sprintf("guest volume %s can't be snapshot: %s", v.Name, v.Cannot)
		}
	}
	apps := 0
	for _, w := range g.Writers {
		switch {
		case !w.Running:
			continue
		case w.Cannot != "":
			return orchestrator.LevelFilesystem, fmt.Sprintf("application writer %s can't take part: %s", w.App, w.Cannot)
		}
		for _, name := range w.Volumes {
			if _, known := can[name]; !known {
				return orchestrator.LevelFilesystem, fmt.Sprintf("application writer %s keeps data on %s, which has no snapshot", w.App, name)
			}
		}
		apps++
	}
	if apps == 0 {
		return orchestrator.LevelFilesystem, fmt.Sprintf("guest requester %s; no application writer runs", g.Requester)
	}
	return orchestrator.LevelApplication, fmt.Sprintf("guest requester %s, application writers %s", g.Requester, names(g.Writers))
}

func names(ws []orchestrator.GuestWriter) string {
	s := ""
	for _, w := range ws {
		if !w.Running {
			continue
		}
		if s != "" {
			s += ", "
		}
		s += w.App
		if w.Version != "" {
			s += " " + w.Version
		}
	}
	return s
}

func volumes(f Facts) []string {
	var vs []string
	for _, d := range f.Disks {
		if d.Volume == "" {
			continue
		}
		for _, v := range append([]string{d.Array + "/" + d.Volume}, d.Also...) {
			if !d.Hosted || !slices.Contains(vs, v) {
				vs = append(vs, v)
			}
		}
	}
	return vs
}
