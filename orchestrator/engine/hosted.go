package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/classify"
	"github.com/cleave-san/cleave/orchestrator/hostvolume"
)

// HostVolumes tells which disks of this host virtual disks lie on that are files
// or logical volumes of it.
type HostVolumes interface {
	// Under finds what lies under a file or block device; hostvolume.ErrNone where
	// no disk does.
	Under(ctx context.Context, path string) (hostvolume.Under, error)
	// Flush makes what was written to the file system of a file, or to a block
	// device, stable on its disks.
	Flush(ctx context.Context, path string) error
	// Mounted reports whether a file system is mounted at a path.
	Mounted(path string) (bool, error)
}

// flushLimit bounds the flush of one host volume. No guest waits for it.
const flushLimit = time.Minute

// resolveHosted finds the volumes under a disk that is a file or a logical volume
// of this host.
func (e *Engine) resolveHosted(ctx context.Context, d orchestrator.Disk) (disk, string) {
	x := disk{device: d.Device, path: d.Path}
	u, err := e.cfg.HostVolumes.Under(ctx, d.Path)
	switch {
	case errors.Is(err, hostvolume.ErrNone):
		return x, fmt.Sprintf("no array answers for %q: %v", d.Path, err)
	case err != nil:
		return x, err.Error()
	}
	for _, dev := range u.Devices {
		p, problem := e.owner(ctx, driver.Disk{NAA: dev.NAA, Serial: dev.Serial, Path: dev.Path})
		switch {
		case problem != "":
			return disk{device: d.Device}, fmt.Sprintf("it lies on %s of this host: %s", dev.Path, problem)
		case p.array == nil:
			return disk{device: d.Device}, fmt.Sprintf("it lies on %s of this host, and no array answers for that", dev.Path)
		}
		x.parts = append(x.parts, p)
	}
	if u.Path == "" && u.Volume == "disk" && len(x.parts) == 1 {
		return x, "" // the volume is the disk, by another name
	}
	x.host = &orchestrator.HostPlace{Volume: u.Volume, Path: u.Path, FS: u.FS, Mount: u.Mount, Format: classify.Format(d.Format), Cache: d.Cache}
	return x, ""
}

// bystander is a VM that is no part of the set and has disks on a host's volume
// that is split with it.
type bystander struct {
	vm    string
	disks []disk
}

// findBystanders looks for the other VMs on the host's volumes of the set.
func (r *run) findBystanders(ctx context.Context) error {
	r.beside = nil
	if !slices.ContainsFunc(r.vms, (*member).hosted) {
		return nil
	}
	vms, err := r.e.VMs(ctx)
	if err != nil {
		return fmt.Errorf("which other VMs lie on the host's volumes: %w", err)
	}
	ours := map[string]bool{}
	for _, m := range r.vms {
		for p := range m.parts() {
			ours[p.name()] = true
		}
	}
	for _, vm := range vms {
		if slices.ContainsFunc(r.vms, func(m *member) bool { return m.vm.Name == vm.Name && m.vm.Writer == vm.Writer }) {
			continue
		}
		b := bystander{vm: vm.Name}
		for _, d := range vm.Disks {
			x, problem := r.e.resolve(ctx, d)
			// One that lies elsewhere as well is not whole in these splits.
			if problem == "" && x.host != nil && !slices.ContainsFunc(x.parts, func(p part) bool { return !ours[p.name()] }) {
				b.disks = append(b.disks, x)
			}
		}
		if len(b.disks) > 0 {
			r.beside = append(r.beside, b)
		}
	}
	return nil
}

// flushHosts flushes the host's volumes under the VMs, all at once, after the
// guests' reports and before the split: what a guest had flushed is on its file by
// then, and the file's place on the volume, too. Where that fails, the VMs on it
// are no better than crash, which ends the set if more was asked.
func (r *run) flushHosts(ctx context.Context) error {
	type volume struct {
		path string // a disk on it
		at   string // for people
		vms  []*member
	}
	var volumes []*volume
	for _, m := range r.vms {
		for _, d := range m.disks {
			if d.host == nil {
				continue
			}
			at := d.path
			if d.host.Mount != "" {
				at = d.host.Mount
			}
			i := slices.IndexFunc(volumes, func(v *volume) bool { return v.at == at })
			if i < 0 {
				i = len(volumes)
				volumes = append(volumes, &volume{path: d.path, at: at})
			}
			if v := volumes[i]; !slices.Contains(v.vms, m) {
				v.vms = append(v.vms, m)
			}
		}
	}
	if len(volumes) == 0 {
		return nil
	}
	return r.step(ctx, "flush host volumes", "", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, flushLimit)
		defer cancel()
		errs := make([]error, len(volumes))
		var wg sync.WaitGroup
		for i, v := range volumes {
			wg.Go(func() { errs[i] = r.e.cfg.HostVolumes.Flush(ctx, v.path) })
		}
		wg.Wait()
		var short []error
		for i, v := range volumes {
			for _, m := range v.vms {
				if errs[i] == nil {
					m.flushed = append(m.flushed, v.at)
					continue
				}
				m.unflushed = errs[i].Error()
				if m.verdict.How == orchestrator.ByGuest && m.asked > orchestrator.LevelCrash {
					short = append(short, fmt.Errorf("VM %q: %w: %w", m.vm.Name, orchestrator.ErrLevel, errs[i]))
				}
			}
		}
		return errors.Join(short...)
	})
}

// lookAtContainers has the containers of all virtual disks on the host's volumes
// looked at in the splits, also those of other VMs, of which one that can't be
// read is no reason to fail.
func (r *run) lookAtContainers(ctx context.Context) error {
	for _, m := range r.vms {
		if !m.hosted() {
			continue
		}
		if err := r.step(ctx, "look at containers", m.vm.Name, func(ctx context.Context) error { return r.containers(ctx, m.disks) }); err != nil {
			return fmt.Errorf("VM %q: looking at its disks' containers: %w", m.vm.Name, err)
		}
		for _, d := range m.disks {
			if d.host != nil && d.host.Container.Problem != "" && m.unreadable == "" {
				m.unreadable = fmt.Sprintf("disk %s: %s", d.device, d.host.Container.Problem)
			}
		}
	}
	for _, b := range r.beside {
		err := r.step(ctx, "look at containers", b.vm, func(ctx context.Context) error { return r.containers(ctx, b.disks) })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, d := range b.disks {
			if d.host.Container == nil {
				d.host.Container = &orchestrator.Container{Problem: fmt.Sprintf("it could not be looked at: %v", err)}
			}
		}
	}
	return nil
}

func (r *run) containers(ctx context.Context, of []disk) error {
	disks, done, err := openDisks(ctx, of)
	if err != nil {
		return err
	}
	defer done()
	found, err := r.e.cfg.Recoverer.Containers(ctx, disks)
	if err != nil {
		return err
	}
	if len(found) != len(of) {
		return fmt.Errorf("%d answers to %d questions", len(found), len(of))
	}
	for i, d := range of {
		if d.host != nil {
			d.host.Container = &found[i]
		}
	}
	return nil
}

// disksOn lists the virtual disks that lie on a split of a host's volume.
func (r *run) disksOn(of splitKey) (out []orchestrator.HostedDisk) {
	add := func(vm string, d disk, level orchestrator.Level, why string) {
		if d.host == nil || !slices.ContainsFunc(d.parts, func(p part) bool { return p.key() == of }) {
			return
		}
		if c := d.host.Container; c != nil && c.Problem != "" {
			level, why = orchestrator.LevelNone, c.Problem
		}
		out = append(out, orchestrator.HostedDisk{VM: vm, Device: d.device, Host: *d.host, Reached: level, Why: why})
	}
	for _, m := range r.vms {
		for _, d := range m.disks {
			add(m.vm.Name, d, m.reached.Level, m.reached.Why)
		}
	}
	for _, b := range r.beside {
		for _, d := range b.disks {
			level := orchestrator.LevelNone
			if d.host.Container != nil {
				level = orchestrator.LevelCrash
			}
			add(b.vm, d, level, "the VM is no part of the set: its disks are as they were at the split")
		}
	}
	return out
}

// lies reports whether what a LUN shows lies on a split, or a part of it.
func lies(set orchestrator.Set, l orchestrator.LUN, s orchestrator.Split) bool {
	if !l.Hosted {
		return l.Split == s.ID
	}
	return slices.ContainsFunc(s.Disks, func(d orchestrator.HostedDisk) bool { return fmt.Sprintf("%s/%s/%s", set.ID, d.VM, d.Device) == l.Name })
}

// hostVolumeName names the LUN of a host's volume itself. No VM's name has a colon.
func (r *run) hostVolumeName(s orchestrator.Split) string {
	return fmt.Sprintf("%s/volume:%s/%s", r.id, s.Array, s.Volume)
}

// unmounted refuses while a host's volume of the set is mounted here: the host
// would write what it has in its memory over what the volume was put back to.
func (r *run) unmounted() error {
	for _, s := range r.document().Splits {
		for _, d := range s.Disks {
			if d.Host.Mount == "" || r.e.cfg.HostVolumes == nil {
				continue
			}
			is, err := r.e.cfg.HostVolumes.Mounted(d.Host.Mount)
			switch {
			case err != nil:
				return fmt.Errorf("snapshot set %s: whether %s is mounted: %w", r.id, d.Host.Mount, err)
			case is:
				return fmt.Errorf("snapshot set %s: %w: its volume %s/%s is mounted at %s; unmount it first", r.id, orchestrator.ErrBusy, s.Array, s.Volume, d.Host.Mount)
			}
		}
	}
	return nil
}
