package assemble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/target"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/recovery/worker"
	"github.com/cleave-san/cleave/plugin/cli"
)

// viewTimeout bounds how long a worker may take for one request of an
// initiator.
const viewTimeout = 30 * time.Second

// disks are devices to serve, and what has to end with them.
type disks struct {
	devices    []lun.Device
	identities []lun.Identity
	recovered  []cli.Recovered
	identity   *cli.NewIdentity
	warnings   []error         // about what is recovered all the same
	over       <-chan struct{} // closed when they can be served no longer; may be nil
	why        func() error
	closers    []func() error // newest last
}

func (d *disks) close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	return errors.Join(errs...)
}

// serveLUNs serves devices by a target of its own until ctx ends.
func serveLUNs(ctx context.Context, o cli.LUNOptions, ready func([]cli.ServedLUN) error, log *slog.Logger) (err error) {
	var d disks
	defer func() { err = errors.Join(err, d.close()) }()
	if o.Recover {
		if o.Identity.New && o.Identity.Seed == "" {
			if o.Identity.Seed, err = lastingSeed(o.Sources.Paths, o.IQN); err != nil {
				return err
			}
		}
		err = d.recover(ctx, o)
		for _, w := range d.warnings {
			log.Warn("what is recovered is read in spite of a warning", "warning", w)
		}
	} else {
		err = d.open(ctx, o)
	}
	if err != nil {
		return err
	}
	s := target.New(target.Options{Logger: log, RequireCHAP: o.User != ""})
	defer func() { err = errors.Join(err, s.Close()) }()
	luns, err := expose(s, o, &d)
	if err != nil {
		return err
	}
	// Last: whoever can connect finds credentials, masks and LUNs in place.
	portal, err := s.Listen(ctx, o.Portal)
	if err != nil {
		return err
	}
	for i := range luns {
		luns[i].Portal = portal.String()
		luns[i].URL = fmt.Sprintf("iscsi://%s/%s/%d", portal, o.IQN, luns[i].LUN)
	}
	if err := ready(luns); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-d.over:
		return d.why()
	}
}

// expose makes the target, and says who may see and use it.
func expose(s *target.Server, o cli.LUNOptions, d *disks) ([]cli.ServedLUN, error) {
	initiators := o.Initiators
	if len(initiators) == 0 {
		initiators = []iscsi.Name{mask.Anyone}
	}
	var grants []mask.Grant
	for i := range d.devices {
		grants = append(grants, mask.Grant{LUN: uint16(i), ReadOnly: o.ReadOnly})
	}
	for _, n := range initiators {
		if o.User != "" {
			if err := s.SetCredentials(n, &mask.Credentials{User: o.User, Secret: o.Secret}); err != nil {
				return nil, fmt.Errorf("CHAP for %s: %w", n, err)
			}
		}
		if err := s.SetMask(o.IQN, n, grants...); err != nil {
			return nil, err
		}
	}
	if err := s.AddTarget(o.IQN, "cleave"); err != nil {
		return nil, err
	}
	var luns []cli.ServedLUN
	for i, dev := range d.devices {
		n, err := s.AddLUN(o.IQN, i, target.LUN{Device: dev, Identity: d.identities[i], Writable: !o.ReadOnly})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.Sources.Paths[i], err)
		}
		luns = append(luns, cli.ServedLUN{
			Source: o.Sources.Paths[i], IQN: string(o.IQN), LUN: n, NAA: d.identities[i].NAAString(),
			Size: dev.Size(), Writable: !o.ReadOnly, Recovered: d.recovered, NewIdentity: d.identity,
		})
	}
	return luns, nil
}

// open opens the sources themselves.
func (d *disks) open(ctx context.Context, o cli.LUNOptions) error {
	for _, path := range o.Sources.Paths {
		if isLUN(path) {
			r, err := openLUN(ctx, path, o.Sources.Login, !o.ReadOnly)
			if err != nil {
				return err
			}
			d.closers = append(d.closers, synced{r}.Close)
			id, err := lastingIdentity(r.ID(), o.IQN)
			if err != nil {
				return err
			}
			d.devices, d.identities = append(d.devices, r), append(d.identities, id)
			continue
		}
		f, err := openDisk(path, !o.ReadOnly)
		if err != nil {
			return err
		}
		d.closers = append(d.closers, f.Close)
		id, err := pathIdentity(path, o.IQN)
		if err != nil {
			return err
		}
		d.devices, d.identities = append(d.devices, f), append(d.identities, id)
	}
	return nil
}

// recover has a worker serve views of the sources, and connects to them.
func (d *disks) recover(ctx context.Context, o cli.LUNOptions) error {
	spec, closeFiles, err := sources(ctx, o.Sources)
	if err != nil {
		return err
	}
	d.closers = append(d.closers, closeFiles)
	spec.Snapshots, spec.ReadOnly, spec.OverlayDir = o.Snapshots, o.ReadOnly, o.Overlay
	if o.Identity.New {
		spec.NewIdentity = o.Identity.Seed
	}
	dir, err := os.MkdirTemp("", "cleave-")
	if err != nil {
		return fmt.Errorf("directory of the recovery worker's socket: %w", err)
	}
	removeDir := func() error { return os.RemoveAll(dir) }
	d.closers = append(d.closers, removeDir)
	spec.Socket = filepath.Join(dir, "view")
	w, err := worker.Start(ctx, spec)
	if err != nil {
		return err
	}
	d.closers = append(d.closers, w.Close)
	d.over, d.why = w.Done(), w.Err
	for _, err := range w.Warnings {
		d.warnings = append(d.warnings, err)
	}
	for _, v := range w.Volumes {
		d.recovered = append(d.recovered, cli.Recovered{Volume: v.Volume, Snapshot: v.Snapshot, UUID: v.SnapshotUUID, Discarded: v.Discarded})
	}
	if o.Identity.New {
		d.identity = &cli.NewIdentity{Seed: spec.NewIdentity, Changed: w.Identity}
	}
	for _, e := range w.Exports {
		c, err := nbd.Dial(ctx, "unix", w.Address(), nbd.ClientOptions{Export: e.Name, Timeout: viewTimeout})
		if err != nil {
			return fmt.Errorf("recovered view: %w", err)
		}
		d.closers = append(d.closers, c.Close)
		d.devices, d.identities = append(d.devices, c), append(d.identities, lun.NewIdentity())
	}
	// Nobody else is to connect, and a kill of this process leaves no file.
	return removeDir()
}
