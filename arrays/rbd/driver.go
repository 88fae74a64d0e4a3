package rbd

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Options of a Driver.
type Options struct {
	// Conf is the path of ceph.conf, which says where the user's key is, and User
	// the name of a Ceph user without "client.". What is empty is Ceph's own
	// default.
	Conf, User string
	// Pools are those whose images are ours to split, each pool or
	// pool/namespace; at least one.
	Pools []string
	// Command is the path of rbd, Ceph that of ceph, which is for Check alone, and
	// Daemon that of qemu-storage-daemon. Default: as they are found in /usr/bin.
	Command, Ceph, Daemon string
	// Through is by what images are read. Default: the first way for which this
	// host has all that it takes.
	Through Way
	// Connect opens a LUN of a target on this host, for the way TGT. nil: it is not
	// there.
	Connect func(context.Context, driver.Path) (lun.Device, error)
	// Limit is the longest that one run of rbd may take. Default: ten minutes;
	// a rollback or the copying of a Break copies an image.
	Limit time.Duration
}

// Driver is a Ceph cluster. Its methods may be called at once.
type Driver struct {
	o     Options
	pools []image // without a name

	doing chan struct{} // is full while something asks first and changes then

	mu   sync.Mutex
	open map[driver.SnapshotID]int
}

// lock makes the caller the only one that changes anything, until it calls what
// is returned.
func (d *Driver) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case d.doing <- struct{}{}:
		return func() { <-d.doing }, nil
	case <-ctx.Done():
		return nil, driver.Errorf(driver.Unreachable, "nothing was started, as something else was under way: %w", context.Cause(ctx))
	}
}

// toEnd runs a change alone. If ctx ends first, nothing more is started, and what
// is under way ends by itself: a command that is killed leaves locks and
// watches behind, for which Ceph makes others wait.
func toEnd[T any](ctx context.Context, d *Driver, change func() (T, error)) (x T, err error) {
	unlock, err := d.lock(ctx)
	if err != nil {
		return x, err
	}
	type result struct {
		x   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer unlock()
		x, err := change()
		done <- result{x, err}
	}()
	select {
	case r := <-done:
		return r.x, r.err
	case <-ctx.Done():
		return x, driver.Errorf(driver.OutcomeUnknown, "it was under way, and goes on: %w", context.Cause(ctx))
	}
}

// opened counts those who have a snapshot open.
func (d *Driver) opened(id driver.SnapshotID, more int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open[id] += more
	n := d.open[id]
	if n == 0 {
		delete(d.open, id)
	}
	return n
}

// New makes a driver. Nothing is run before its first call.
func New(o Options) (*Driver, error) {
	if o.Command == "" {
		o.Command = "/usr/bin/rbd"
	}
	if o.Ceph == "" {
		o.Ceph = "/usr/bin/ceph"
	}
	if o.Daemon == "" {
		o.Daemon = "/usr/bin/qemu-storage-daemon"
	}
	if o.Limit <= 0 {
		o.Limit = 10 * time.Minute
	}
	for what, p := range map[string]string{"conf": o.Conf, "command": o.Command, "ceph": o.Ceph, "daemon": o.Daemon} {
		if p != "" && !filepath.IsAbs(p) {
			return nil, driver.Errorf(driver.InvalidRequest, "%s %q: want an absolute path", what, p)
		}
	}
	if o.Through != "" && !slices.ContainsFunc(ways, func(w way) bool { return w.name == o.Through }) {
		return nil, driver.Errorf(driver.InvalidRequest, "through %.80q: want %s, %s or %s", o.Through, StorageDaemon, TGT, KernelNBD)
	}
	d := &Driver{o: o, doing: make(chan struct{}, 1), open: map[driver.SnapshotID]int{}}
	for _, p := range o.Pools {
		i, err := parseImage(p + "/x")
		if err != nil {
			return nil, driver.Errorf(driver.InvalidRequest, "pool %.80q: want pool or pool/namespace", p)
		}
		if i.name = ""; !slices.Contains(d.pools, i) { // named twice it would have all snapshots twice
			d.pools = append(d.pools, i)
		}
	}
	if len(d.pools) == 0 {
		return nil, driver.Errorf(driver.InvalidRequest, "no pool is named whose images are to be split")
	}
	return d, nil
}

// Kind implements driver.Driver.
func (d *Driver) Kind(err error) driver.Kind {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return driver.Unknown
}

func (d *Driver) is(err error, k driver.Kind) bool { return err != nil && d.Kind(err) == k }

// Describe implements driver.Describer.
func (d *Driver) Describe(context.Context) (driver.Description, error) {
	return driver.Description{Provider: "rbd", Snapshot: true, GroupOrdered: true, Revert: true, Break: true, Changes: true}, nil
}

// info is what `rbd info` says.
type info struct {
	ID       string   `json:"id"`
	Size     int64    `json:"size"`
	Features []string `json:"features"`
	Group    string   `json:"group"` // pool/group or pool/namespace/group
	// Snapshots are those that it has, of SnapshotLimit; nil: no limit.
	Snapshots     int64  `json:"snapshot_count"`
	SnapshotLimit *int64 `json:"snapshot_limit"`
	Parent        *struct {
		Pool      string `json:"pool"`
		Namespace string `json:"pool_namespace"`
		Image     string `json:"image"`
		Snapshot  string `json:"snapshot"`
	} `json:"parent"`
}

// ours reports whether an image is in one of the pools.
func (d *Driver) ours(i image) bool {
	return slices.Contains(d.pools, image{pool: i.pool, namespace: i.namespace})
}

func (d *Driver) info(ctx context.Context, i image) (x info, err error) {
	if !d.ours(i) {
		return x, driver.Errorf(driver.NotFound, "image %s is in no pool that is configured", i)
	}
	if err = d.ask(ctx, &x, append([]string{"info"}, i.args()...)...); err == nil && x.Size <= 0 {
		err = driver.Errorf(driver.NotSupported, "image %s has %d bytes", i, x.Size)
	}
	return x, err
}

func (d *Driver) volume(ctx context.Context, id driver.VolumeID) (image, info, error) {
	i, err := parseImage(string(id))
	if err != nil {
		return i, info{}, err
	}
	x, err := d.info(ctx, i)
	return i, x, err
}

// Resolve implements driver.Driver. A disk is an image of ours if its path says
// so: rbd:pool/image, as QEMU has it, or /dev/rbd/pool/image, as the kernel's
// client does.
func (d *Driver) Resolve(ctx context.Context, x driver.Disk) (driver.Volume, error) {
	name, ok := strings.CutPrefix(x.Path, "rbd:")
	if name, _, _ = strings.Cut(name, ":"); !ok { // options follow
		name, ok = strings.CutPrefix(x.Path, "/dev/rbd/")
	}
	i, err := parseImage(name)
	if !ok || err != nil || !d.ours(i) || i.isView() {
		return driver.Volume{}, driver.Errorf(driver.NotMine, "the disk is no image of the pools that are configured")
	}
	v, err := d.info(ctx, i)
	if d.is(err, driver.NotFound) {
		return driver.Volume{}, driver.Errorf(driver.NotMine, "there is no image %s", i)
	}
	return volume(i, v), err
}

func volume(i image, x info) driver.Volume {
	return driver.Volume{ID: i.id(), Name: i.name, Size: x.Size, State: driver.Synchronized, Mirrors: 1}
}

// Prepare implements driver.Driver: a snapshot of Ceph's needs no copying before.
func (d *Driver) Prepare(ctx context.Context, vs []driver.VolumeID, _ driver.PrepareOptions) error {
	for _, v := range vs {
		if _, _, err := d.volume(ctx, v); err != nil {
			return err
		}
	}
	return nil
}
