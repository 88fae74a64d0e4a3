package cinder

import (
	"context"
	"strings"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// Driver is a Cinder. Its methods may be called at once.
type Driver struct {
	c     *client
	o     *Options
	locks locks
}

// New makes a driver. Nothing is asked before its first call, so that a cloud
// that can't be reached keeps nobody from starting.
func New(o Options) (*Driver, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Host == "" {
		o.Host = "cleave"
	}
	if o.Limit <= 0 {
		o.Limit = 10 * time.Minute
	}
	if o.pause == nil {
		o.pause = sleep
	}
	return &Driver{c: &client{o: &o}, o: &o}, nil
}

// Without lists the options that this driver lacks as it is set up, for
// arrays.New.
func (d *Driver) Without() []arrays.Capability {
	if d.o.Connect == nil {
		return []arrays.Capability{arrays.OpenDevice}
	}
	return nil
}

// limited bounds a call.
func (d *Driver) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d.o.Limit)
}

// Describe implements driver.Describer.
func (d *Driver) Describe(ctx context.Context) (driver.Description, error) {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	x := driver.Description{Provider: "cinder", Snapshot: true}
	pools, err := d.consistentPools(ctx)
	switch {
	case err == nil:
		x.GroupOrdered = len(pools) > 0
	case !isKind(err, driver.NotPermitted):
		return x, err
	}
	return x, nil
}

// Resolve implements driver.Driver. A disk is a volume of Cinder's if its serial
// number is the volume's ID, as Nova sets it, or if it is reached by what Cinder
// has attached: an iSCSI target and LUN, or an RBD image.
func (d *Driver) Resolve(ctx context.Context, x driver.Disk) (driver.Volume, error) {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	serial := strings.ToLower(x.Serial)
	if isID(serial) {
		v, err := d.volume(ctx, serial)
		if isKind(err, driver.NotFound) {
			return driver.Volume{}, driver.Errorf(driver.NotMine, "Cinder has no volume %s", serial)
		} else if err != nil {
			return driver.Volume{}, err
		}
		return v.driver(), nil
	}
	if x.IQN == "" && x.Path == "" {
		return driver.Volume{}, driver.Errorf(driver.NotMine, "Cinder knows disks by their serial number, iSCSI target or RBD image")
	}
	as, err := list(ctx, d.c, "attachments/detail", "attachments", nil, func(a attachment) string { return a.ID })
	if err != nil {
		return driver.Volume{}, err
	}
	found := ""
	for _, a := range as {
		if c, err := a.connection(); err != nil || !c.is(x) {
			continue
		}
		if found != "" && found != a.Volume {
			return driver.Volume{}, driver.Errorf(driver.Ambiguous, "volumes %s and %s are both attached as this disk", found, a.Volume)
		}
		found = a.Volume
	}
	if found == "" {
		return driver.Volume{}, driver.Errorf(driver.NotMine, "no volume of Cinder's is attached as this disk")
	}
	v, err := d.volume(ctx, found)
	return v.driver(), err
}

// volume asks for a volume. What can't be a volume's ID isn't there.
func (d *Driver) volume(ctx context.Context, id string) (volume, error) {
	if !isID(id) {
		return volume{}, driver.Errorf(driver.NotFound, "%.80q is not the ID of a volume", id)
	}
	v, err := get[volume](ctx, d.c, "volumes/"+id, "volume")
	if err == nil && (v.ID != id || v.Size <= 0 || v.Size > 1<<30) {
		return volume{}, driver.Errorf(driver.Unreachable, "GET /volumes/%s: the reply is about volume %.80q of %d GiB", id, v.ID, v.Size)
	}
	return v, err
}

func (v volume) driver() driver.Volume {
	x := driver.Volume{ID: driver.VolumeID(v.ID), Name: v.Name, Size: v.Size * gib, State: driver.Synchronized, Mirrors: 1}
	if x.Name == "" {
		x.Name = v.ID
	}
	if !v.ready() {
		x.State = driver.Broken
	}
	return x
}

func (v volume) ready() bool { return v.Status == "available" || v.Status == "in-use" }

// Prepare implements driver.Driver. A snapshot needs no copying before; what is
// checked is that the volumes are there and the project's quota has room for a
// snapshot of each.
func (d *Driver) Prepare(ctx context.Context, ids []driver.VolumeID, o driver.PrepareOptions) error {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	made, err := d.tagged(ctx, o.Tag)
	if err != nil {
		return err
	}
	var snapshots, size int64
	for _, id := range ids {
		v, err := d.volume(ctx, string(id))
		if err != nil {
			return err
		}
		if !v.ready() {
			return driver.Errorf(driver.Busy, "volume %s is %q", id, v.Status)
		}
		if !made.has(v.ID) {
			snapshots++
			size += v.Size
		}
	}
	return d.fits(ctx, snapshots, size)
}

// limits are the project's, and what it uses of them; -1 is no limit. They count
// snapshots with volumes where the cloud's configuration says so.
type limits struct {
	Snapshots     int64 `json:"maxTotalSnapshots"`
	Gigabytes     int64 `json:"maxTotalVolumeGigabytes"`
	SnapshotsUsed int64 `json:"totalSnapshotsUsed"`
	GigabytesUsed int64 `json:"totalGigabytesUsed"`
}

// fits reads the quota.
func (d *Driver) fits(ctx context.Context, snapshots, size int64) error {
	if snapshots == 0 && size == 0 {
		return nil
	}
	all, err := send[struct {
		Absolute limits `json:"absolute"`
	}](ctx, d.c, ask, "limits", "limits", nil)
	if err != nil {
		return err
	}
	l := all.Absolute
	if l.Snapshots >= 0 && l.SnapshotsUsed+snapshots > l.Snapshots {
		return driver.Errorf(driver.NoSpace, "the project's quota has %d snapshots, %d are used, and %d more are needed", l.Snapshots, l.SnapshotsUsed, snapshots)
	}
	if l.Gigabytes >= 0 && l.GigabytesUsed+size > l.Gigabytes {
		return driver.Errorf(driver.NoSpace, "the project's quota has %d GiB, %d are used, and %d more are needed", l.Gigabytes, l.GigabytesUsed, size)
	}
	return nil
}
