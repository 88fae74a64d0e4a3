package rbd

import (
	"context"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Metadata of images that says what has been done.
const (
	revertedKey = "cleave.reverted." // and a safe point's name: the revert before which it was made is done
	ofKey       = "cleave.of"        // of a volume that was broken off: the snapshot that it was
)

func (s snap) reverted() string { return revertedKey + s.name }

func (d *Driver) remember(ctx context.Context, i image, key, value string) error {
	return d.do(ctx, append(append([]string{"image-meta", "set"}, i.args()...), key, value)...)
}

func (d *Driver) forget(ctx context.Context, i image, key string) error {
	all, err := d.remembered(ctx, i)
	if err != nil || all[key] == "" {
		return err
	}
	err = d.do(ctx, append(append([]string{"image-meta", "remove"}, i.args()...), key)...)
	if d.is(err, driver.NotFound) {
		return nil
	}
	return err
}

func (d *Driver) remembered(ctx context.Context, i image) (all map[string]string, err error) {
	// It opens the image for writing, and killed would stay its user for a while.
	raw, err := d.run(ctx, true, append([]string{"image-meta", "list", "--format=json"}, i.args()...))
	if err != nil || len(strings.TrimSpace(string(raw))) == 0 { // nothing is printed where there is none
		return nil, err
	}
	return decode(raw)
}

// Revert implements driver.Reverter. The safe point is a snapshot, and the
// rollback is Ceph's own, which copies; one that was cut off is done again from
// its beginning.
func (d *Driver) Revert(ctx context.Context, id driver.SnapshotID) (driver.Snapshot, error) {
	s, err := parseSnap(id)
	if err != nil {
		return driver.Snapshot{}, err
	}
	return toEnd(ctx, d, func() (driver.Snapshot, error) { return d.revert(ctx, s) })
}

func (d *Driver) revert(ctx context.Context, s snap) (driver.Snapshot, error) {
	from, err := d.find(ctx, s)
	if err != nil {
		return driver.Snapshot{}, err
	}
	safe := s.image.at(s.before())
	done, err := d.remembered(ctx, s.image)
	if err != nil {
		return driver.Snapshot{}, err
	}
	if done[safe.reverted()] != "" {
		if l, err := d.find(ctx, safe); !d.is(err, driver.NotFound) {
			return l.driver(safe), err
		}
	}
	if err := d.unused(ctx, s.image); err != nil {
		return driver.Snapshot{}, err
	}
	before, err := d.make(ctx, safe)
	if err != nil {
		return driver.Snapshot{}, err
	}
	if from.isMember() {
		err = d.copyBack(ctx, s)
	} else {
		err = d.do(ctx, append([]string{"snap", "rollback"}, s.args()...)...)
	}
	if err != nil {
		return driver.Snapshot{}, err
	}
	return before, d.remember(ctx, s.image, safe.reverted(), "yes")
}

// unused refuses an image that a client has open.
func (d *Driver) unused(ctx context.Context, i image) error {
	var x struct {
		Watchers []struct {
			Address string `json:"address"`
		} `json:"watchers"`
	}
	if err := d.ask(ctx, &x, append([]string{"status"}, i.args()...)...); err != nil {
		return err
	}
	if len(x.Watchers) > 0 {
		return driver.Errorf(driver.Busy, "image %s is in use by %.80q", i, x.Watchers[0].Address)
	}
	return nil
}

// Break implements driver.Breaker: a clone of the snapshot, which is copied until
// it needs the snapshot no more.
func (d *Driver) Break(ctx context.Context, id driver.SnapshotID, name string) (driver.Volume, error) {
	s, err := parseSnap(id)
	if err != nil {
		return driver.Volume{}, err
	}
	to := image{s.pool, s.namespace, name}
	if !plain(name) || strings.HasPrefix(name, "-") || to.isView() {
		return driver.Volume{}, driver.Errorf(driver.InvalidRequest, "name %.80q: an image's has none of / @ : , and no space, and does not begin with - or %s", name, viewPrefix)
	}
	return toEnd(ctx, d, func() (driver.Volume, error) { return d.breakOff(ctx, s, to) })
}

func (d *Driver) breakOff(ctx context.Context, s snap, to image) (driver.Volume, error) {
	id := s.id()
	if d.opened(id, 0) > 0 {
		return driver.Volume{}, driver.Errorf(driver.Busy, "snapshot %s is open", id)
	}
	x, err := d.info(ctx, to)
	switch {
	case d.is(err, driver.NotFound):
		l, err := d.find(ctx, s)
		if err != nil {
			return driver.Volume{}, err
		}
		if l.isMember() {
			err = d.copyOff(ctx, s, to)
		} else {
			err = d.clone(ctx, s, to)
		}
		if err != nil {
			return driver.Volume{}, err
		}
		if x, err = d.info(ctx, to); err != nil {
			return driver.Volume{}, err
		}
	case err != nil:
		return driver.Volume{}, err
	}
	known, err := d.remembered(ctx, to)
	if err != nil {
		return driver.Volume{}, err
	}
	if p := x.Parent; known[ofKey] != string(id) && (p == nil || image{p.Pool, p.Namespace, p.Image} != s.image || p.Snapshot != s.name) {
		return driver.Volume{}, driver.Errorf(driver.InvalidRequest, "there is an image %s already", to)
	}
	if known[ofKey] == "" {
		if err := d.remember(ctx, to, ofKey, string(id)); err != nil {
			return driver.Volume{}, err
		}
	}
	if x.Parent != nil {
		if err := d.do(ctx, append([]string{"flatten"}, to.args()...)...); err != nil {
			return driver.Volume{}, err
		}
	}
	return volume(to, x), d.remove(ctx, s)
}

// clone makes an image of a snapshot. The second form of clones needs no snapshot
// to be protected.
func (d *Driver) clone(ctx context.Context, s snap, to image) error {
	args := append([]string{"clone", "--rbd-default-clone-format=2", "--dest-pool=" + to.pool, "--dest=" + to.name}, s.args()...)
	if to.namespace != "" {
		args = append(args, "--dest-namespace="+to.namespace)
	}
	return d.do(ctx, args...)
}
