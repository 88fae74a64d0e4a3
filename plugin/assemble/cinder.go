package assemble

import (
	"context"
	"strings"

	"github.com/cleave-san/cleave/arrays/cinder"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/rbd"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/lun"
)

// openCinder makes the driver of a Cinder, whose volumes are read by our own
// initiator or, where they are images of Ceph, through librbd.
func openCinder(c ArrayConfig) (*cinder.Driver, error) {
	o := cinder.Options{Cloud: c.Cloud, CloudsFile: c.CloudsFile, Endpoint: c.Endpoint, Project: c.Project, GroupType: c.GroupType, Initiator: c.Initiator}
	if o.Initiator != "" {
		o.Connect = func(ctx context.Context, x cinder.Connection) (lun.Device, error) {
			return lend(ctx, loan{Array: c, Connection: x})
		}
	}
	return cinder.New(o)
}

func openRBD(c ArrayConfig) (*rbd.Driver, error) {
	return rbd.New(rbd.Options{
		Conf: c.Conf, User: c.User, Pools: c.Pools, Through: rbd.Way(c.Through),
		Connect: func(ctx context.Context, p driver.Path) (lun.Device, error) {
			name, err := hostInitiator(initiatorFile)
			if err != nil {
				return nil, err
			}
			return login(ctx, p, name)
		},
	})
}

// connect opens a volume that Cinder has attached to this host.
func connect(ctx context.Context, c ArrayConfig, x cinder.Connection) (lun.Device, error) {
	if x.Protocol == "rbd" {
		pool := x.Image[:strings.LastIndex(x.Image, "/")]
		user := c.User
		if user == "" {
			user = x.User
		}
		d, err := openRBD(ArrayConfig{Conf: c.Conf, User: user, Pools: []string{pool}, Through: c.Through})
		if err != nil {
			return nil, err
		}
		return d.OpenImage(ctx, driver.VolumeID(x.Image))
	}
	p := driver.Path{Portals: x.Portals, IQN: x.Targets[0], LUN: x.LUN, CHAP: x.CHAP}
	return login(ctx, p, iscsi.Name(c.Initiator))
}

// login opens a LUN of an array's as the initiator of the name given.
func login(ctx context.Context, p driver.Path, as iscsi.Name) (lun.Device, error) {
	if p.LUN > 16383 { // SAM-5, 4.7.7: flat addressing
		return nil, driver.Errorf(driver.NotSupported, "LUN %d of %s is beyond what is addressed here", p.LUN, p.IQN)
	}
	o := initiator.Options{
		Portals: p.Portals, Target: iscsi.Name(p.IQN), LUN: int(p.LUN), Initiator: as, Recovery: lunRecovery, Timeout: lunRecovery,
	}
	if p.CHAP != nil {
		o.CHAP = &mask.Credentials{User: p.CHAP.User, Secret: []byte(p.CHAP.Secret)}
	}
	d, err := initiator.Open(ctx, o)
	if err != nil {
		return nil, targetError(strings.Join(p.Portals, ", "), err)
	}
	return d, nil
}
