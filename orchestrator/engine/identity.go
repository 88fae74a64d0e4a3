package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// A copy of a disk has the disk's identity in every byte: partition table, PV, VG.
// A host that has both before it takes one for the other, and a cluster's node may
// write to the wrong one. So no initiator that sees an original gets a copy of it,
// but one whose identifiers are its own.

// ofNew ends the names of LUNs whose identifiers are their own.
const ofNew = "/new"

// initiators puts the initiators of hosts in the place of their names.
func (e *Engine) initiators(names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		iqns := []string{n}
		if !isInitiator(n) {
			if iqns = e.cfg.Hosts[n]; len(iqns) == 0 {
				return nil, fmt.Errorf("host %q: %w: the configuration has %q", n, orchestrator.ErrNotFound, slices.Sorted(maps.Keys(e.cfg.Hosts)))
			}
		}
		for _, iqn := range iqns {
			if !slices.Contains(out, iqn) {
				out = append(out, iqn)
			}
		}
	}
	return out, nil
}

// isInitiator tells the name of an initiator (RFC 7143, 4.2.7) from that of a host.
func isInitiator(name string) bool {
	kind, _, ok := strings.Cut(name, ".")
	return ok && (kind == "iqn" || kind == "eui" || kind == "naa")
}

// hostOf is the name of the host that has an initiator, or "".
func (e *Engine) hostOf(iqn string) string {
	for _, name := range slices.Sorted(maps.Keys(e.cfg.Hosts)) {
		if slices.ContainsFunc(e.cfg.Hosts[name], func(x string) bool { return strings.EqualFold(x, iqn) }) {
			return name
		}
	}
	return ""
}

// original is a volume of which there is, or will be, a copy.
type original struct {
	name      string // for people: VM and disk, or the volume
	array     string
	volume    string
	initiator string // as which its hypervisor reaches it; "" if that is not known
}

// originals are the volumes under the disks of VMs. A disk that lies on a host's
// volume is none: no host sees it as a disk.
func originals(vms []orchestrator.VMResult) []original {
	var out []original
	for _, m := range vms {
		for _, d := range m.Disks {
			if d.Host == nil {
				out = append(out, original{fmt.Sprintf("disk %s of VM %q", d.Device, m.Name), d.Array, d.Volume, d.Initiator})
			}
		}
	}
	return out
}

// originalOf is the volume that a LUN shows a copy of, if a host could take one for
// the other.
func originalOf(set orchestrator.Set, l orchestrator.LUN) (original, bool) {
	if l.Hosted || l.NewIdentity {
		return original{}, false
	}
	i := slices.IndexFunc(set.Splits, func(s orchestrator.Split) bool { return s.ID == l.Split })
	if i < 0 {
		return original{}, false
	}
	s := set.Splits[i]
	for _, o := range originals(set.VMs) {
		if o.array == s.Array && o.volume == s.Volume {
			return o, true
		}
	}
	return original{fmt.Sprintf("volume %q", s.Volume), s.Array, s.Volume, ""}, true
}

// apart refuses initiators that have an original before them. Unknown are the
// originals of which nobody tells who sees them.
func (e *Engine) apart(ctx context.Context, of []original, to []string) (unknown []string, err error) {
	for _, o := range of {
		var names []string
		a := e.array(o.array)
		if a == nil {
			return nil, fmt.Errorf("%s: array %q: %w", o.name, o.array, errArrayGone)
		}
		names, err = a.PresentedTo(ctx, driver.VolumeID(o.volume))
		switch {
		case err == nil:
		case arrays.KindOf(err) != driver.NotSupported:
			return nil, fmt.Errorf("who has the original before them: %w", err)
		case o.initiator == "":
			unknown = append(unknown, o.name)
		}
		if o.initiator != "" {
			names = append(names, o.initiator)
		}
		for _, iqn := range to {
			host := e.hostOf(iqn)
			if slices.ContainsFunc(names, func(n string) bool { return n == "*" || strings.EqualFold(n, iqn) || host != "" && n == host }) {
				return nil, fmt.Errorf("%w: initiator %s has the original of %s before it (volume %q of array %q), and would take the copy for it: ask for a new identity (--new-identity)", orchestrator.ErrUsage, iqn, o.name, o.volume, o.array)
			}
		}
	}
	return unknown, nil
}

// newViews brings up, once for each VM, a view of its disks whose identifiers are
// its own: clean where the VM's LUNs are.
func (r *run) newViews(ctx context.Context) error {
	for _, m := range r.document().VMs {
		if r.hasNew(m) {
			continue
		}
		disks, want, clean, err := r.recorded(m)
		if err != nil {
			return err
		}
		var v View
		err = r.step(ctx, "give a new identity", m.Name, func(ctx context.Context) error {
			opened, done, err := openDisks(ctx, disks)
			if err != nil {
				return err
			}
			defer done()
			name := string(r.id) + "/" + m.Name + ofNew
			if err := r.holdOnce(journal.Holding{Kind: journal.View, VM: m.Name, Name: name}); err != nil {
				return err
			}
			if v, err = r.e.cfg.Recoverer.Start(ctx, name, opened, want, string(r.id)); err != nil {
				return err
			}
			if len(v.Exports) != len(disks) {
				return fmt.Errorf("%d views of %d disks", len(v.Exports), len(disks))
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("VM %q: a view of its disks with a new identity: %w", m.Name, err)
		}
		err = r.update(func(rec *journal.Record) {
			for i, d := range m.Disks {
				id := lun.NewIdentity()
				rec.Set.LUNs = append(rec.Set.LUNs, orchestrator.LUN{
					Name: fmt.Sprintf("%s/%s/%s%s", r.id, m.Name, d.Device, ofNew), Split: d.Split, Clean: clean, NewIdentity: true,
					NAA: id.NAAString(), UUID: id.String(), Hosted: d.Host != nil, Socket: v.Socket, Export: v.Exports[i],
				})
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) hasNew(m orchestrator.VMResult) bool {
	prefix := fmt.Sprintf("%s/%s/", r.id, m.Name)
	return slices.ContainsFunc(r.document().LUNs, func(l orchestrator.LUN) bool {
		return l.NewIdentity && strings.HasPrefix(l.Name, prefix) && l.Socket != ""
	})
}

// recorded are a VM's disks as the document has them, what is to be recovered of
// them in a view, and whether that is clean then.
func (r *run) recorded(m orchestrator.VMResult) (disks []disk, want []InGuest, clean bool, err error) {
	want = foundInGuest(m)
	clean = len(want) > 0
	splits := r.document().Splits
	for _, d := range m.Disks {
		if s := splitOf(splits, d); s != nil && s.Recovery == orchestrator.RecoveredInPlace {
			want = nil // it is clean itself
		}
		x := disk{device: d.Device, host: d.Host}
		for _, p := range append([]orchestrator.DiskPart{{Array: d.Array, Volume: d.Volume, Split: d.Split}}, d.Also...) {
			a := r.e.array(p.Array)
			if a == nil {
				return nil, nil, false, fmt.Errorf("split %q on array %q: %w", p.Split, p.Array, errArrayGone)
			}
			x.parts = append(x.parts, part{array: a, volume: driver.Volume{ID: driver.VolumeID(p.Volume)}, split: driver.Snapshot{ID: driver.SnapshotID(p.Split)}})
		}
		disks = append(disks, x)
	}
	return disks, want, clean, nil
}
