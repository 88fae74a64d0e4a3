package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/scsi"
	"github.com/cleave-san/cleave/iscsi/target"
)

// plane is a running data plane.
type plane struct {
	ctx     context.Context // ends with Run
	c       Config
	log     *slog.Logger
	array   *embedded.Array
	target  *target.Server
	portals []Portal // bound
	started time.Time

	// handed counts the snapshots whose descriptors others have.
	handed sync.WaitGroup

	// mu serialises changes of what is exposed to whom. No I/O waits for it.
	mu      sync.Mutex
	rec     *record
	devices map[int]device // by LUN number
}

// Run serves until ctx ends, and returns nil then, when everything is closed
// and synced. log may be nil.
func Run(ctx context.Context, c Config, log *slog.Logger) (err error) {
	if err := c.check(); err != nil {
		return err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := &plane{ctx: ctx, c: c, log: log, started: time.Now(), devices: map[int]device{}}
	for _, dir := range []string{p.secrets(), p.reservations().dir, p.history().dir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("data plane: %w", err)
		}
	}
	p.array, err = embedded.Open(ctx, embedded.Options{
		StateDir: ArrayState(c.StateDir), Pools: c.Pools, Limits: c.Limits, Logger: log,
		ResyncRate: c.ResyncRate,
	})
	if err != nil {
		return fmt.Errorf("data plane: %w", err)
	}
	defer func() { err = errors.Join(err, p.array.Close()) }()
	// The array's lock is ours now, so the record is, too.
	if p.rec, err = loadRecord(p.recordPath()); err != nil {
		return fmt.Errorf("data plane: %w", err)
	}
	p.target = target.New(target.Options{Logger: log, RequireCHAP: c.RequireCHAP, Advertise: c.Advertise,
		Reservations: p.reservations(), History: p.history()})
	defer func() {
		err = errors.Join(err, p.target.Close())
		for _, d := range p.devices {
			err = errors.Join(err, d.Close())
		}
	}()
	if err := p.restore(); err != nil {
		return fmt.Errorf("data plane: %w", err)
	}
	for _, portal := range c.Portals {
		bound, err := p.target.ListenGroup(ctx, portal.Addr, portal.group())
		if err != nil {
			return fmt.Errorf("data plane: %w", err)
		}
		p.portals = append(p.portals, Portal{Addr: bound, Group: portal.group()})
	}
	// Only now: whoever can ask finds everything served.
	return p.control(ctx)
}

// ArrayState is where the array's records are in a Config's StateDir.
func ArrayState(stateDir string) string { return filepath.Join(stateDir, "array") }

func (p *plane) recordPath() string { return filepath.Join(p.c.StateDir, "target.json") }
func (p *plane) secrets() string    { return filepath.Join(p.c.StateDir, "secrets") }
func (p *plane) history() history {
	return history{filepath.Join(p.c.StateDir, "history")}
}

func (p *plane) reservations() reservations {
	return reservations{filepath.Join(p.c.StateDir, "reservations")}
}

// restore brings up what was exposed before: credentials, then masks, then
// LUNs.
func (p *plane) restore() error {
	for _, i := range p.rec.Initiators {
		if err := p.setCredentials(i); err != nil {
			// Its next login fails; everybody else's I/O must not.
			p.problem(fmt.Sprintf("initiator %s: %v", i.IQN, err))
		}
	}
	for _, i := range p.c.Initiators {
		r, err := configured(i)
		if err == nil {
			err = p.setCredentials(r)
		}
		if err != nil {
			return fmt.Errorf("initiator %s: %w", i.IQN, err)
		}
	}
	if err := p.target.AddTarget(p.c.IQN, "cleave"); err != nil {
		return err
	}
	for _, l := range p.rec.LUNs {
		if err := p.mask(p.rec, l.Initiators); err != nil {
			return err
		}
	}
	for _, l := range p.rec.LUNs {
		dev, err := p.openDevice(l)
		if err != nil {
			p.problem(fmt.Sprintf("LUN %d (%s %s) can't be opened and answers with I/O errors: %v", l.Number, l.Kind, l.Of, err))
			dev = &away{size: l.Size, why: err}
		}
		err = p.serve(l, dev)
		if errors.Is(err, scsi.ErrReservations) {
			// Who was fenced off must not come in; the other LUNs go on.
			p.problem(fmt.Sprintf("LUN %d (%s %s) is not served: %v", l.Number, l.Kind, l.Of, err))
			p.devices[l.Number], err = &away{size: l.Size, why: err}, nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// serve puts a device under its LUN number.
func (p *plane) serve(l lunRecord, dev device) error {
	_, err := p.target.AddLUN(p.c.IQN, l.Number, target.LUN{Device: dev, Identity: l.Identity, Writable: l.Writable})
	if err != nil {
		dev.Close()
		return fmt.Errorf("LUN %d: %w", l.Number, err)
	}
	p.devices[l.Number] = dev
	return nil
}

// mask tells the target what each of some initiators sees by a record.
func (p *plane) mask(r *record, who []iscsi.Name) error {
	for _, i := range who {
		if err := p.target.SetMask(p.c.IQN, i, r.grants(i)...); err != nil {
			return fmt.Errorf("mask of %s: %w", i, err)
		}
	}
	return nil
}

// problem is the kind of events about what can't be served.
const problem embedded.EventKind = "problem"

func (p *plane) problem(text string) {
	p.array.Note(embedded.Event{Kind: problem, Severity: embedded.Error, Text: text})
}

// anyone is how "every initiator" is written.
const anyone = string(mask.Anyone)
