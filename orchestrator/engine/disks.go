package engine

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/classify"
)

// disk is a virtual disk of a VM and what lies under it.
type disk struct {
	device string
	path   string // as its hypervisor knows it; "" where that is no path
	// initiator is as which its hypervisor reaches the volume; "" if not known.
	initiator string
	parts     []part // several where a logical volume of the host spans them
	// host says where on the parts it lies; nil where it is the one part.
	host *orchestrator.HostPlace
}

// part is a volume under a virtual disk, and later its split.
type part struct {
	array  *arrays.Array
	volume driver.Volume
	split  driver.Snapshot
}

// name is the volume as people know it.
func (p *part) name() string {
	return p.array.Name() + "/" + cmp.Or(p.volume.Name, string(p.volume.ID))
}

// splitKey tells splits of all arrays apart.
type splitKey struct {
	array string
	id    driver.SnapshotID
}

func (p *part) key() splitKey { return splitKey{p.array.Name(), p.split.ID} }

// parts are the volumes under all disks of a VM. One that several disks lie on
// comes for each of them.
func (m *member) parts() iter.Seq[*part] {
	return func(yield func(*part) bool) {
		for i := range m.disks {
			for k := range m.disks[i].parts {
				if !yield(&m.disks[i].parts[k]) {
					return
				}
			}
		}
	}
}

// hosted reports whether a disk of the VM lies on a host's volume.
func (m *member) hosted() bool {
	for _, d := range m.disks {
		if d.host != nil {
			return true
		}
	}
	return false
}

// hostedOn reports whether all that the VM has on a volume of that name are disks
// that share it.
func (m *member) hostedOn(volume string) bool {
	for _, d := range m.disks {
		for _, p := range d.parts {
			if d.host == nil && p.name() == volume {
				return false
			}
		}
	}
	return true
}

// resolve finds the volume under a disk: exactly one array must answer for it, or
// for each of the host's disks under the file or the logical volume that it is.
func (e *Engine) resolve(ctx context.Context, d orchestrator.Disk) (disk, string) {
	x := disk{device: d.Device, path: d.Path, initiator: d.Initiator}
	if strings.HasPrefix(d.Path, "/dev/") {
		x.initiator = e.cfg.Initiator // its kernel reaches it, by whatever way
	}
	p, problem := e.owner(ctx, driver.Disk{NAA: d.NAA, Serial: d.Serial, IQN: d.IQN, LUN: d.LUN, Portal: d.Portal, Path: d.Path})
	switch {
	case problem != "":
		return x, problem
	case p.array != nil:
		x.parts = []part{p}
		return x, ""
	case d.Path != "" && e.cfg.HostVolumes != nil:
		return e.resolveHosted(ctx, d)
	case d.IQN != "":
		return x, fmt.Sprintf("no array answers for \"%s LUN %d\"", d.IQN, d.LUN)
	}
	return x, fmt.Sprintf("no array answers for %q", d.Path)
}

// owner asks every array for a disk. That none answers is no problem yet: the
// part has no array then.
func (e *Engine) owner(ctx context.Context, ask driver.Disk) (p part, problem string) {
	for _, a := range e.cfg.Arrays {
		v, err := a.Resolve(ctx, ask)
		switch {
		case err == nil && p.array != nil:
			return part{}, fmt.Sprintf("arrays %q and %q both claim it", p.array.Name(), a.Name())
		case err == nil:
			p.array, p.volume = a, v
		case arrays.KindOf(err) != driver.NotMine:
			return part{}, err.Error()
		}
	}
	return p, ""
}

// facts is what a verdict needs to know of a disk.
func (d *disk) facts(problem string) classify.Disk {
	f := classify.Disk{Problem: problem, Hosted: d.host != nil}
	for i := range d.parts {
		p := &d.parts[i]
		if i == 0 {
			f.Array, f.Volume = p.array.Name(), cmp.Or(p.volume.Name, string(p.volume.ID))
			continue
		}
		f.Also = append(f.Also, p.name())
	}
	return f
}

// result is what the document says of a disk now.
func (d *disk) result() orchestrator.DiskResult {
	r := orchestrator.DiskResult{Device: d.device, Initiator: d.initiator}
	if d.host != nil { // what is known of it grows, and readers have the document
		host := *d.host
		r.Host = &host
	}
	for i, p := range d.parts {
		r.FullCopy = r.FullCopy || p.volume.FullCopy
		x := orchestrator.DiskPart{Array: p.array.Name(), Volume: string(p.volume.ID), Split: string(p.split.ID)}
		if i == 0 {
			r.Array, r.Volume, r.Split = x.Array, x.Volume, x.Split
			continue
		}
		r.Also = append(r.Also, x)
	}
	return r
}

// openDisks opens the splits under the disks of a VM for reading, each once; done
// closes them.
func openDisks(ctx context.Context, of []disk) (disks Disks, done func(), err error) {
	done = func() {
		for _, d := range disks.Devices {
			if c, ok := d.(io.Closer); ok {
				c.Close() // opened for reading: closing loses nothing
			}
		}
	}
	opened := map[splitKey]int{}
	hosted := false
	for _, d := range of {
		place := Place{Name: d.device, Volume: "disk", Format: "raw"}
		if d.host != nil {
			hosted = true
			place.Volume, place.Path, place.Format = d.host.Volume, d.host.Path, d.host.Format
		}
		for _, p := range d.parts {
			i, there := opened[p.key()]
			if !there {
				var dev lun.Device
				if dev, err = p.array.Open(ctx, p.split.ID); err != nil {
					done()
					return Disks{}, nil, err
				}
				i = len(disks.Devices)
				disks.Devices, opened[p.key()] = append(disks.Devices, dev), i
			}
			place.On = append(place.On, i)
		}
		disks.Places = append(disks.Places, place)
	}
	if !hosted {
		disks.Places = nil
	}
	return disks, done, nil
}
