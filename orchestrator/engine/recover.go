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
// lists what there is to read: clean views, and splits as they are.
func (r *run) recover(ctx context.Context) error {
	var luns []orchestrator.LUN
	for _, m := range r.vms {
		clean := m.verdict.How == orchestrator.ByGuest && len(m.inGuest()) > 0
		var v View
		if clean {
			err := r.step(ctx, "recover", m.vm.Name, func(ctx context.Context) error {
				var err error
				v, err = r.view(ctx, m)
				return err
			})
			if err != nil {
				return err
			}
		}
		for i, d := range m.disks {
			dirty := orchestrator.LUN{Name: r.lunName(m, d) + "/split", Split: string(d.split.ID), NAA: d.split.NAA, UUID: d.split.Identity.String()}
			if clean {
				id := lun.NewIdentity()
				luns = append(luns, orchestrator.LUN{
					Name: r.lunName(m, d), Split: string(d.split.ID), Clean: true, NAA: id.NAAString(), UUID: id.String(),
					Socket: v.Socket, Export: v.Exports[i],
				})
			}
			luns = append(luns, dirty)
		}
	}
	return r.update(func(rec *journal.Record) {
		rec.Set.LUNs = luns
		for i, s := range rec.Set.Splits {
			for _, l := range luns {
				if l.Clean && l.Split == s.ID {
					rec.Set.Splits[i].Recovery = orchestrator.RecoveredAsView
				}
			}
		}
	})
}

func (r *run) view(ctx context.Context, m *member) (View, error) {
	disks, done, err := m.open(ctx)
	if err != nil {
		return View{}, err
	}
	defer done()
	name := string(r.id) + "/" + m.vm.Name
	if err := r.hold(journal.Holding{Kind: journal.View, VM: m.vm.Name, Name: name}); err != nil {
		return View{}, err
	}
	v, err := r.e.cfg.Recoverer.Start(ctx, name, disks, m.inGuest())
	if err != nil {
		return View{}, fmt.Errorf("VM %q: recovering its disks: %w", m.vm.Name, err)
	}
	if len(v.Exports) != len(disks) {
		return View{}, fmt.Errorf("VM %q: recovering its disks: %d views of %d disks", m.vm.Name, len(v.Exports), len(disks))
	}
	return v, nil
}

// lunName is set/vm/device: the device id of a disk of the set.
func (r *run) lunName(m *member, d disk) string {
	return fmt.Sprintf("%s/%s/%s", r.id, m.vm.Name, d.device)
}

// handOver exposes what the request asked for, and starts the lease.
func (r *run) handOver(ctx context.Context) error {
	req := r.request()
	if len(req.Initiators) > 0 {
		if err := r.expose(ctx, orchestrator.ExposeRequest{Initiators: req.Initiators, Dirty: req.ExposeDirty}); err != nil {
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
