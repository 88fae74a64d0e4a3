package assemble

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/plugin/cli"
	"github.com/cleave-san/cleave/plugin/dataplane"
)

// Array runs the data plane until ctx ends. Options win over the configuration,
// which may be missing.
func Array(ctx context.Context, o cli.ArrayOptions, getenv func(string) string, log *slog.Logger) error {
	d, err := dataPlane(o, getenv)
	if err != nil {
		return err
	}
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

// dataPlane is the data plane's part of the configuration, which may be missing,
// with options in the place of what it says. Its paths are absolute.
func dataPlane(o cli.ArrayOptions, getenv func(string) string) (*DataPlaneConfig, error) {
	c := defaults(getenv, os.Geteuid())
	if o.Config != "" {
		var err error
		if c, err = Load(o.Config, getenv); err != nil {
			return nil, err
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
	for name, limit := range o.PoolLimits {
		if d.PoolLimits == nil {
			d.PoolLimits = map[string]PoolLimitConfig{}
		}
		l := d.PoolLimits[name]
		l.Limit = limit
		d.PoolLimits[name] = l
	}
	if len(o.Portals) > 0 {
		d.Portals = o.Portals
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("configuration of the data plane: %w", err)
	}
	c.resolve(dir) // what came from flags
	return d, nil
}

// poolsGiven refuses a configuration that names no pool, or one without a place.
func (d *DataPlaneConfig) poolsGiven() error {
	if len(d.Pools) == 0 {
		return usage("dataPlane.pools: there is none; name a directory for each disk, here or by --pool NAME=DIRECTORY")
	}
	for name, dir := range d.Pools {
		if dir == "" {
			return usage("dataPlane.pools.%s: its directory is missing", name)
		}
	}
	return nil
}

// config is what the data plane is run with.
func (d *DataPlaneConfig) config() (dataplane.Config, error) {
	out := dataplane.Config{
		StateDir: d.State, Pools: d.Pools, IQN: iscsi.Name(d.IQN), Socket: d.Socket,
		RequireCHAP: d.RequireCHAP, ResyncRate: d.ResyncRate, ViewTimeout: d.ViewTimeout,
	}
	if err := d.poolsGiven(); err != nil {
		return out, err
	}
	if err := d.limits(&out); err != nil {
		return out, err
	}
	if len(d.Socket) > maxSocket {
		return out, usage("dataPlane.socket: %s has %d bytes, a unix socket's path has at most %d", d.Socket, len(d.Socket), maxSocket)
	}
	for i, s := range d.Portals {
		p, err := parsePortal(s)
		if err != nil {
			return out, usage("dataPlane.portals[%d]: %w", i, err)
		}
		out.Portals = append(out.Portals, p)
	}
	for i, s := range d.Advertise {
		p, err := iscsi.ParsePortal(s)
		if err != nil {
			return out, usage("dataPlane.advertise[%d]: %w", i, err)
		}
		out.Advertise = append(out.Advertise, p)
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

// parsePortal reads ADDRESS:PORT[,GROUP], as a target names its portals (RFC 7143
// section 13.8).
func parsePortal(s string) (dataplane.Portal, error) {
	addr, tag, tagged := strings.Cut(s, ",")
	ap, err := iscsi.ParsePortal(addr)
	if err != nil || !tagged {
		return dataplane.Portal{Addr: ap}, err
	}
	group, err := strconv.ParseUint(tag, 10, 16)
	if err != nil || group == 0 {
		return dataplane.Portal{}, fmt.Errorf("portal %.80q: want a number from 1 to 65535 as its portal group", s)
	}
	return dataplane.Portal{Addr: ap, Group: uint16(group)}, nil
}

// limits fills in what may be used of pools.
func (d *DataPlaneConfig) limits(out *dataplane.Config) error {
	for name, l := range d.PoolLimits {
		at := "dataPlane.poolLimits." + name
		if _, ok := d.Pools[name]; !ok {
			return usage("%s: there is no pool of that name", at)
		}
		if l.Limit < 0 || l.Low < 0 {
			return usage("%s: bytes can't be negative", at)
		}
		if l.LowPercent > 100 {
			return usage("%s.lowPercent: %d is more than 100", at, l.LowPercent)
		}
		if out.Limits == nil {
			out.Limits = map[string]embedded.PoolLimit{}
		}
		out.Limits[name] = embedded.PoolLimit{Limit: l.Limit, LowBytes: l.Low, LowPercent: l.LowPercent}
	}
	return nil
}
