package assemble

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/plugin/cli"
	"github.com/cleave-san/cleave/plugin/dataplane"
)

// Array runs the data plane until ctx ends. Options win over the configuration,
// which may be missing.
func Array(ctx context.Context, o cli.ArrayOptions, getenv func(string) string, log *slog.Logger) error {
	c := defaults(getenv, os.Geteuid())
	if o.Config != "" {
		var err error
		if c, err = Load(o.Config, getenv); err != nil {
			return err
		}
	}
	d := &c.DataPlane
	for _, f := range []struct {
		into *string
		flag string
	}{{&d.Socket, o.Socket}, {&d.State, o.State}, {&d.IQN, o.IQN}} {
		if f.flag != "" {
			*f.into = f.flag
		}
	}
	if len(o.Pools) > 0 {
		d.Pools = o.Pools
	}
	if len(o.Portals) > 0 {
		d.Portals = o.Portals
	}
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("starting the data plane: %w", err)
	}
	c.resolve(dir) // what came from flags
	run, err := d.config()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.Socket), 0o700); err != nil {
		return fmt.Errorf("directory of the array's control socket: %w", err)
	}
	run.Ready = func(s remote.Status) {
		for _, p := range s.Problems {
			log.Warn(p)
		}
	}
	err = dataplane.Run(ctx, run, log)
	if arrays.KindOf(err) == driver.Busy {
		return &hinted{err, "a `cleave array` runs with this state directory or pool: end it first, or name others"}
	}
	return err
}

// config is what the data plane is run with.
func (d *DataPlaneConfig) config() (dataplane.Config, error) {
	out := dataplane.Config{
		StateDir: d.State, Pools: d.Pools, IQN: iscsi.Name(d.IQN), Socket: d.Socket,
		RequireCHAP: d.RequireCHAP, ResyncRate: d.ResyncRate, ViewTimeout: d.ViewTimeout,
	}
	if len(d.Pools) == 0 {
		return out, usage("dataPlane.pools: there is none; name a directory for each disk, here or by --pool NAME=DIRECTORY")
	}
	for name, dir := range d.Pools {
		if dir == "" {
			return out, usage("dataPlane.pools.%s: its directory is missing", name)
		}
	}
	if len(d.Socket) > maxSocket {
		return out, usage("dataPlane.socket: %s has %d bytes, a unix socket's path has at most %d", d.Socket, len(d.Socket), maxSocket)
	}
	for _, l := range []struct {
		key  string
		from []string
		into *[]netip.AddrPort
	}{{"portals", d.Portals, &out.Portals}, {"advertise", d.Advertise, &out.Advertise}} {
		for i, p := range l.from {
			ap, err := iscsi.ParsePortal(p)
			if err != nil {
				return out, usage("dataPlane.%s[%d]: %w", l.key, i, err)
			}
			*l.into = append(*l.into, ap)
		}
	}
	iqn, err := iscsi.ParseName(d.IQN)
	if err != nil {
		return out, usage("dataPlane.iqn: %w", err)
	}
	out.IQN = iqn
	for i, x := range d.Initiators {
		name, err := iscsi.ParseName(x.IQN)
		if err != nil {
			return out, usage("dataPlane.initiators[%d].iqn: %w", i, err)
		}
		out.Initiators = append(out.Initiators, remote.Initiator{
			IQN: string(name), User: x.User, SecretFile: x.SecretFile, MutualUser: x.MutualUser, MutualSecretFile: x.MutualSecretFile,
		})
	}
	return out, nil
}
