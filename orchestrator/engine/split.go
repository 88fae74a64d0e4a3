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
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// split arms several arrays, pauses the VMs that need it, splits all volumes, and
// lets the VMs run again, whatever happened. The intent is journaled before the
// first array acts, and nothing is journaled until the last VM runs again.
func (r *run) split(ctx context.Context) error {
	var hs []journal.Holding
	for _, g := range r.byArray() {
		hs = append(hs, journal.Holding{Kind: journal.ArraySplit, Array: g.array.Name(), Tag: string(r.tag())})
	}
	if err := r.hold(hs...); err != nil {
		return err
	}
	err := r.flushHosts(ctx)
	if err == nil {
		err = r.arm(ctx)
	}
	if err == nil {
		err = r.splitWhilePaused(ctx)
	}
	if err == nil {
		err = r.step(ctx, "check states", "", r.checkStates)
	}
	jerr := r.update(func(rec *journal.Record) {
		rec.Set.VMs = results(r.vms)
		rec.Set.Splits = r.splits()
	})
	return errors.Join(err, jerr)
}

func (r *run) splitWhilePaused(ctx context.Context) (err error) {
	resume, err := r.pauseAll(ctx)
	var began, ended time.Time
	defer func() {
		rerr := resume()
		for _, m := range r.vms {
			m.holds = m.pause != nil && !began.IsZero() && !m.pause.From.After(began) && !m.pause.From.Add(m.pause.For).Before(ended)
		}
		err = errors.Join(err, rerr)
	}()
	if err != nil {
		return err
	}
	began = time.Now()
	err = r.step(ctx, "split", "", r.splitAll)
	ended = time.Now()
	return err
}

// pauseAll stops the VMs that have no better way, all at once. The function it
// returns resumes them and must be called, also after an error.
func (r *run) pauseAll(ctx context.Context) (resume func() error, err error) {
	var (
		mu     sync.Mutex
		pauses = map[*member]writer.Pause{}
		errs   []error
		wg     sync.WaitGroup
	)
	limit := r.request().PauseLimit
	for _, m := range r.vms {
		if m.verdict.How != orchestrator.ByPause {
			continue
		}
		wg.Go(func() {
			p, err := m.writer.Pause(ctx, m.vm.Name, limit)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("VM %q can't be paused: %w", m.vm.Name, err))
				return
			}
			pauses[m] = p
		})
	}
	wg.Wait()
	// Resuming obeys no cancelled context: it has the guard's own limit.
	resume = func() error { return r.resumeAll(context.WithoutCancel(ctx), pauses, limit) }
	return resume, errors.Join(errs...)
}

func (r *run) resumeAll(ctx context.Context, pauses map[*member]writer.Pause, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit+grace)
	defer cancel()
	var (
		mu   sync.Mutex
		errs []error
		wg   sync.WaitGroup
	)
	for m, p := range pauses {
		wg.Go(func() {
			done, err := p.Resume(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("VM %q: resuming is not confirmed, its guard goes on: %w", m.vm.Name, err))
				return
			}
			m.pause = &done
			r.addSteps(orchestrator.Step{Name: "paused", VM: m.vm.Name, Clock: "host", From: done.From, To: done.From.Add(done.For)})
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// assign gives each disk its split. Every volume has exactly one, with an
// identity that is not its source's.
func (r *run) assign(g group, snaps []driver.Snapshot) error {
	for _, v := range g.volumes {
		i := slices.IndexFunc(snaps, func(s driver.Snapshot) bool { return s.Volume == v })
		if i < 0 {
			return fmt.Errorf("array %q: volume %q is not among the %d splits of %s", g.array.Name(), v, len(snaps), r.tag())
		}
		r.eachPart(func(p *part) {
			if p.array == g.array && p.volume.ID == v {
				p.split = snaps[i]
			}
		})
	}
	return nil
}

// checkStates asks again what the VMs are: one that is no longer what the plan
// saw makes the attempt worthless (the patent's element E38).
func (r *run) checkStates(ctx context.Context) error {
	vms, err := r.e.VMs(ctx)
	if err != nil {
		return err
	}
	for _, m := range r.vms {
		i := slices.IndexFunc(vms, func(vm orchestrator.VM) bool { return vm.Name == m.vm.Name && vm.Writer == m.vm.Writer })
		switch {
		case i < 0:
			return fmt.Errorf("VM %q %w: it is gone", m.vm.Name, errVMChanged)
		case vms[i].Power != m.vm.Power:
			return fmt.Errorf("VM %q %w: it was %s and is %s", m.vm.Name, errVMChanged, m.vm.Power, vms[i].Power)
		}
	}
	return nil
}

// eachPart calls fn for the volumes under all disks, those of bystanders too.
func (r *run) eachPart(fn func(*part)) {
	for _, m := range r.vms {
		for p := range m.parts() {
			fn(p)
		}
	}
	for _, b := range r.beside {
		for i := range b.disks {
			for k := range b.disks[i].parts {
				fn(&b.disks[i].parts[k])
			}
		}
	}
}

// splits is what the document says of the splits. The level of one that several
// disks lie on is the worst of theirs.
func (r *run) splits() []orchestrator.Split {
	var out []orchestrator.Split
	seen := map[splitKey]bool{}
	for _, m := range r.vms {
		for p := range m.parts() {
			if p.split.ID == "" || seen[p.key()] {
				continue
			}
			seen[p.key()] = true
			s := p.split
			x := orchestrator.Split{
				Array: p.array.Name(), ID: string(s.ID), Volume: string(s.Volume), Size: s.Size, NAA: s.NAA, UUID: s.Identity.String(),
				Method: string(s.Method), State: string(s.State), Group: s.Group, At: s.At, Held: s.Held, Reached: m.reached.Level,
				Disks: r.disksOn(p.key()),
			}
			for _, d := range x.Disks {
				x.Reached = min(x.Reached, d.Reached)
			}
			out = append(out, x)
		}
	}
	return out
}
