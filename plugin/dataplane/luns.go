package dataplane

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/target"
	"github.com/cleave-san/cleave/lun/nbd"
)

// unexposeWait bounds how long commands under way may finish when a LUN goes.
const unexposeWait = 10 * time.Second

// names checks a list of initiators.
func names(list []string) ([]iscsi.Name, error) {
	if len(list) == 0 {
		return nil, driver.Errorf(driver.InvalidRequest, "no initiators named: a LUN is exposed to somebody")
	}
	var out []iscsi.Name
	for _, s := range list {
		n := iscsi.Name(s)
		if s != anyone {
			var err error
			if n, err = iscsi.ParseName(s); err != nil {
				return nil, driver.Errorf(driver.InvalidRequest, "%w", err)
			}
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

// expose serves what want describes (all but its number), or adds initiators
// and their right to write to the LUN that there is.
func (p *plane) expose(want lunRecord) (driver.Path, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.add(want)
}

// add is expose with p.mu held.
func (p *plane) add(want lunRecord) (driver.Path, error) {
	next := p.rec.clone()
	if l := next.find(want.Kind, want.Of); l != nil {
		return p.widen(next, l, want)
	}
	n, err := next.number(func(n int) bool { return p.target.NumberFree(p.c.IQN, n, want.Identity) })
	if err != nil {
		return driver.Path{}, driver.Errorf(driver.NoSpace, "%w", err)
	}
	want.Number = n
	dev, err := p.openDevice(want)
	if err != nil {
		return driver.Path{}, err
	}
	next.LUNs = append(next.LUNs, want)
	if err := next.save(p.recordPath()); err != nil {
		dev.Close()
		return driver.Path{}, err
	}
	p.rec = next
	err = p.mask(next, want.Initiators)
	if err == nil {
		if err = p.serve(want, dev); err == nil {
			p.log.Info("LUN exposed", "lun", n, "kind", want.Kind, "of", want.Of, "to", want.Initiators, "writable", want.Writable)
			return p.path(want), nil
		}
	} else {
		dev.Close()
	}
	return driver.Path{}, errors.Join(err, p.forget(want))
}

// widen is expose where the LUN exists.
func (p *plane) widen(next *record, l *lunRecord, want lunRecord) (driver.Path, error) {
	if l.Identity != want.Identity {
		return driver.Path{}, driver.Errorf(driver.Busy, "%s %q is LUN %d with identity %s, not %s; withdraw it first",
			l.Kind, l.Of, l.Number, l.Identity, want.Identity)
	}
	moved := l.Socket != want.Socket || l.Export != want.Export
	_, lost := p.devices[l.Number].(*away) // perhaps it is back
	if moved && l.Size != want.Size {
		return driver.Path{}, driver.Errorf(driver.InvalidRequest, "%s %q has %d bytes, at %s there are %d", l.Kind, l.Of, l.Size, want.Socket, want.Size)
	}
	l.Socket, l.Export = want.Socket, want.Export
	writable := l.Writable
	for _, n := range want.Initiators {
		if want.Writable {
			l.grant(n, readWrite)
		} else if l.access(n) == noAccess {
			l.grant(n, readOnly)
		}
	}
	raised := l.Writable && !writable
	if raised {
		if err := p.raise(*l); err != nil {
			return driver.Path{}, err
		}
	}
	if err := next.save(p.recordPath()); err != nil {
		return driver.Path{}, err
	}
	p.rec = next
	if moved || lost {
		if err := p.reopen(*l); err != nil {
			return driver.Path{}, err
		}
	}
	// Masks first: those that may only read don't write in between.
	if err := p.mask(next, l.Initiators); err != nil {
		return driver.Path{}, err
	}
	if raised {
		if err := p.target.SetWritable(p.c.IQN, l.Number, true); err != nil {
			return driver.Path{}, fmt.Errorf("LUN %d: %w", l.Number, err)
		}
	}
	return p.path(*l), nil
}

// reopen gives a LUN another device under the same number: a view's new socket,
// or what could not be opened before.
func (p *plane) reopen(l lunRecord) error {
	if err := p.take(context.Background(), l); err != nil {
		return err
	}
	dev, err := p.openDevice(l)
	if err != nil {
		// The number stays taken, as after a start.
		dev = &away{size: l.Size, why: err}
	}
	if err := p.mask(p.rec, l.Initiators); err != nil {
		dev.Close()
		return err
	}
	if serr := p.serve(l, dev); serr != nil {
		return serr
	}
	return err
}

// raise makes what is behind a LUN ready to be written to.
func (p *plane) raise(l lunRecord) error {
	if s, ok := p.devices[l.Number].(*split); ok {
		return s.raise()
	}
	return nil
}

// unexpose takes a LUN away. What is not exposed is success.
func (p *plane) unexpose(ctx context.Context, k kind, of string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.remove(ctx, k, of)
}

// remove is unexpose with p.mu held.
func (p *plane) remove(ctx context.Context, k kind, of string) error {
	l := p.rec.find(k, of)
	if l == nil {
		return nil
	}
	if err := p.take(ctx, *l); err != nil {
		return err
	}
	p.log.Info("LUN unexposed", "lun", l.Number, "kind", k, "of", of)
	return p.forget(*l)
}

// take removes a LUN from the target and closes its device.
func (p *plane) take(ctx context.Context, l lunRecord) error {
	dev := p.devices[l.Number]
	if r, ok := dev.(*nbd.Redialer); ok {
		// Commands that wait for a worker need not be waited for.
		if err := r.Close(); err != nil {
			p.log.Warn("closing a view", "lun", l.Number, "error", err)
		}
	}
	// A caller that left must not leave commands cut off that would have
	// ended; the bound is ours.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unexposeWait)
	defer cancel()
	err := p.target.RemoveLUN(ctx, p.c.IQN, l.Number)
	if errors.Is(err, target.ErrBusy) {
		return driver.Errorf(driver.Busy, "LUN %d: %w; try again", l.Number, err)
	}
	if err != nil && !errors.Is(err, target.ErrNoLUN) {
		return fmt.Errorf("LUN %d: %w", l.Number, err)
	}
	delete(p.devices, l.Number)
	if dev == nil {
		return nil
	}
	if err := dev.Close(); err != nil {
		return fmt.Errorf("LUN %d: %w", l.Number, err)
	}
	return nil
}

// forget takes a LUN out of the record.
func (p *plane) forget(l lunRecord) error {
	next := p.rec.clone()
	next.LUNs = slices.DeleteFunc(next.LUNs, func(x lunRecord) bool { return x.Number == l.Number })
	if err := next.save(p.recordPath()); err != nil {
		return err
	}
	p.rec = next
	// An identity that is exposed again begins with no reservation.
	if err := p.reservations().Save(l.Identity, nil); err != nil {
		return fmt.Errorf("LUN %d: %w", l.Number, err)
	}
	return p.mask(next, l.Initiators)
}

// path is how initiators reach a LUN.
func (p *plane) path(l lunRecord) driver.Path {
	return driver.Path{
		Portals: p.portalNames(), IQN: string(p.c.IQN), LUN: uint64(l.Number),
		Identity: l.Identity, NAA: l.Identity.NAAString(), Writable: l.Writable,
	}
}

// portalNames are the addresses to tell initiators. "All addresses" is none
// that they could connect to, and is only named where there is nothing better.
func (p *plane) portalNames() []string {
	var out []string
	for _, a := range p.c.Advertise {
		if !a.Addr().IsUnspecified() {
			out = append(out, a.String())
		}
	}
	for _, o := range p.portals {
		if !o.Addr.Addr().IsUnspecified() || len(p.c.Advertise) == 0 {
			out = append(out, o.Addr.String())
		}
	}
	return out
}

// exposed describes a LUN, nil if there is none. It is called without p.mu.
func (p *plane) exposed(k kind, of string) *remote.LUN {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.rec.find(k, of); l != nil {
		d := p.describe(*l)
		return &d
	}
	return nil
}

// describe is called with p.mu held.
func (p *plane) describe(l lunRecord) remote.LUN {
	out := remote.LUN{Path: p.path(l), Kind: string(l.Kind), Of: l.Of}
	for _, n := range l.Initiators {
		out.Initiators = append(out.Initiators, string(n))
	}
	switch d := p.devices[l.Number].(type) {
	case *away:
		out.Problem = d.why.Error()
	case *nbd.Redialer:
		if err := d.Err(); err != nil {
			out.Problem = err.Error()
		}
	}
	return out
}

// publish exposes a view.
func (p *plane) publish(ctx context.Context, r remote.Publication) (driver.Path, error) {
	who, err := names(r.Initiators)
	switch {
	case err != nil:
		return driver.Path{}, err
	case r.Name == "" || len(r.Name) > 1024:
		return driver.Path{}, driver.Errorf(driver.InvalidRequest, "view %.80q: want a name of 1 to 1024 bytes", r.Name)
	case !filepath.IsAbs(r.Socket):
		return driver.Path{}, driver.Errorf(driver.InvalidRequest, "view %q: socket %.200q: want an absolute path", r.Name, r.Socket)
	case r.Identity.IsZero():
		return driver.Path{}, driver.Errorf(driver.InvalidRequest, "view %q: a LUN needs an identity", r.Name)
	}
	// A look at the worker before anything is promised: it tells the size.
	ctx, cancel := context.WithTimeout(ctx, p.c.ViewTimeout)
	defer cancel()
	c, err := nbd.Dial(ctx, "unix", r.Socket, nbd.ClientOptions{Export: r.Export, Timeout: p.c.ViewTimeout})
	if err != nil {
		return driver.Path{}, driver.Errorf(driver.NotFound, "view %q: %w", r.Name, err)
	}
	size, readOnly := c.Size(), c.ReadOnly()
	logical, physical := c.Blocks()
	c.Close()
	if r.Writable && readOnly {
		return driver.Path{}, driver.Errorf(driver.InvalidRequest, "view %q: asked to be writable, and its worker serves it read-only", r.Name)
	}
	return p.expose(lunRecord{
		Kind: kindView, Of: r.Name, Identity: r.Identity, Size: size, Initiators: who, Writable: r.Writable,
		Socket: r.Socket, Export: r.Export, Logical: logical, Physical: physical,
	})
}
