package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// recover brings up a clean view of each VM whose guest snapshot itself, and
// lists what there is to read: clean views, and what came off as it is. Of disks
// on a host's volumes there is a view for that, too.
func (r *run) recover(ctx context.Context) error {
	var luns []orchestrator.LUN
	for _, m := range r.vms {
		var clean, dirty View
		var err error
		if want := m.inGuest(); m.verdict.How == orchestrator.ByGuest && len(want) > 0 {
			if clean, err = r.view(ctx, "recover", m, "", want); err != nil {
				return err
			}
		}
		if m.hosted() {
			if dirty, err = r.view(ctx, "bring up disks", m, ofDirty, nil); err != nil {
				return err
			}
		}
		for i, d := range m.disks {
			if len(clean.Exports) > 0 {
				luns = append(luns, r.viewLUN(m, d, clean, i, ""))
			}
			if d.host != nil {
				luns = append(luns, r.viewLUN(m, d, dirty, i, ofDirty))
				continue
			}
			s := d.parts[0].split
			luns = append(luns, orchestrator.LUN{Name: r.lunName(m, d) + ofDirty, Split: string(s.ID), NAA: s.NAA, UUID: s.Identity.String()})
		}
	}
	for _, s := range r.document().Splits {
		if len(s.Disks) > 0 {
			luns = append(luns, orchestrator.LUN{Name: r.hostVolumeName(s), Split: s.ID, NAA: s.NAA, UUID: s.UUID})
		}
	}
	return r.update(func(rec *journal.Record) {
		rec.Set.LUNs = luns
		for i, s := range rec.Set.Splits {
			for _, l := range luns {
				if l.Clean && lies(rec.Set, l, s) {
					rec.Set.Splits[i].Recovery = orchestrator.RecoveredAsView
				}
			}
		}
	})
}

// ofDirty ends the names of what is as it came off.
const ofDirty = "/split"

// view brings up a view of a VM's disks, with these snapshots recovered.
func (r *run) view(ctx context.Context, step string, m *member, suffix string, want []InGuest) (v View, err error) {
	err = r.step(ctx, step, m.vm.Name, func(ctx context.Context) error {
		disks, done, err := openDisks(ctx, m.disks)
		if err != nil {
			return err
		}
		defer done()
		name := string(r.id) + "/" + m.vm.Name + suffix
		if err := r.hold(journal.Holding{Kind: journal.View, VM: m.vm.Name, Name: name}); err != nil {
			return err
		}
		if v, err = r.e.cfg.Recoverer.Start(ctx, name, disks, want, ""); err != nil {
			return err
		}
		if len(v.Exports) != len(m.disks) {
			return fmt.Errorf("%d views of %d disks", len(v.Exports), len(m.disks))
		}
		return nil
	})
	if err != nil {
		return View{}, fmt.Errorf("VM %q: recovering its disks: %w", m.vm.Name, err)
	}
	return v, nil
}

// viewLUN is the LUN of the i-th disk in a view. It has an identity of its own.
func (r *run) viewLUN(m *member, d disk, v View, i int, suffix string) orchestrator.LUN {
	id := lun.NewIdentity()
	return orchestrator.LUN{
		Name: r.lunName(m, d) + suffix, Split: string(d.parts[0].split.ID), Clean: suffix == "", NAA: id.NAAString(), UUID: id.String(),
		Hosted: d.host != nil, Socket: v.Socket, Export: v.Exports[i],
	}
}

// lunName is set/vm/device: the device id of a disk of the set.
func (r *run) lunName(m *member, d disk) string {
	return fmt.Sprintf("%s/%s/%s", r.id, m.vm.Name, d.device)
}

// handOver exposes what the request asked for, and starts the lease.
func (r *run) handOver(ctx context.Context) error {
	req := r.request()
	if len(req.Initiators) > 0 {
		if err := r.expose(ctx, orchestrator.ExposeRequest{Initiators: req.Initiators, Dirty: req.ExposeDirty, NewIdentity: req.NewIdentity}); err != nil {
			return err
		}
	}
	return r.update(func(rec *journal.Record) { rec.Set.Expires = now().Add(req.Lease) })
}

// startLease has the set released when its lease ends.
func (r *run) startLease() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lease = time.AfterFunc(time.Until(r.rec.Set.Expires), func() {
		r.e.release(r, errLease)
	})
}

func (r *run) stopLease() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lease != nil {
		r.lease.Stop()
	}
}
