package rbd

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// A group snapshot of Ceph's is one instant of all images of a group: rbd takes
// the exclusive locks of all of them, for which each client that writes first
// ends what it has under way and then waits, makes the snapshots while it holds
// them all, and lets them go (librbd, api/Group.cc: snap_create). An image
// without exclusive-lock has none to be taken, and is refused.

// group is the name of a group of images.
type group image

func (g group) String() string { return image(g).String() }

// ours reports whether a group was made here.
func (g group) ours() bool { return strings.HasPrefix(g.name, prefix) }

// of is the group that is made for a tag, beside the image.
func (i image) groupOf(t driver.Tag) group {
	return group{i.pool, i.namespace, prefix + string(t)}
}

// grouped is the key of what an image's metadata has about a group snapshot.
func (s snap) grouped() string { return "cleave.group." + string(s.tag()) }

// record is what is known of a group snapshot, on each of its images.
type record struct {
	Group  string   `json:"group"`
	Images []string `json:"images"`
}

func parseRecord(text string) (g group, all []image, err error) {
	var r record
	if json.Unmarshal([]byte(text), &r) != nil {
		return g, nil, driver.Errorf(driver.InvalidRequest, "metadata of an image: %.80q is not what Cleave writes there", text)
	}
	i, err := parseImage(r.Group)
	for _, name := range r.Images {
		x, bad := parseImage(name)
		if bad != nil {
			err = bad
		}
		all = append(all, x)
	}
	return group(i), all, err
}

// SplitGroup implements driver.GroupSplitter.
func (d *Driver) SplitGroup(ctx context.Context, tag driver.Tag, ids []driver.VolumeID) ([]driver.Snapshot, error) {
	if len(ids) == 1 {
		s, err := d.Split(ctx, tag, ids[0])
		return []driver.Snapshot{s}, err
	}
	return toEnd(ctx, d, func() ([]driver.Snapshot, error) {
		return d.splitGroup(context.WithoutCancel(ctx), ctx.Err, tag, ids) // what is begun is ended or taken back
	})
}

// splitGroup splits unless given up before the snapshot is begun.
func (d *Driver) splitGroup(ctx context.Context, givenUp func() error, tag driver.Tag, ids []driver.VolumeID) ([]driver.Snapshot, error) {
	images, infos := make([]image, len(ids)), make([]info, len(ids))
	if err := each(len(ids), func(i int) (err error) {
		images[i], infos[i], err = d.volume(ctx, ids[i])
		return err
	}); err != nil {
		return nil, err
	}
	if ss, err := d.splitBefore(ctx, tag, images); ss != nil || err != nil {
		return ss, err
	}
	if err := d.canGroup(ctx, images, infos); err != nil {
		return nil, err
	}
	g, err := d.gather(ctx, tag, images, infos)
	if err != nil {
		return nil, err
	}
	if err = d.note(ctx, tag, g, images); err == nil && givenUp() != nil {
		err = driver.Errorf(driver.Unreachable, "the group snapshot was not begun: %w", givenUp())
	}
	if err == nil {
		err = d.do(ctx, "group", "snap", "create", g.at(tag))
	}
	var ss []driver.Snapshot
	if err == nil {
		ss, err = d.members(ctx, tag, images)
	}
	if err != nil {
		if !d.is(err, driver.OutcomeUnknown) {
			_ = d.takeBack(ctx, tag, g, images) // the next set does it otherwise
		}
		return nil, err
	}
	return ss, d.leave(ctx, g, images)
}

// splitBefore returns the tag's snapshots where they are there. What is left of
// an attempt that came to nothing is taken away.
func (d *Driver) splitBefore(ctx context.Context, tag driver.Tag, images []image) ([]driver.Snapshot, error) {
	found := make([]*listed, len(images))
	if err := each(len(images), func(i int) error {
		l, err := d.find(ctx, images[i].at(tag))
		if err == nil {
			found[i] = &l
		} else if d.is(err, driver.NotFound) {
			err = nil
		}
		return err
	}); err != nil {
		return nil, err
	}
	at := slices.IndexFunc(found, func(l *listed) bool { return l != nil })
	if at < 0 {
		return nil, nil
	}
	known, err := d.remembered(ctx, images[at])
	if err != nil {
		return nil, err
	}
	text := known[images[at].at(tag).grouped()]
	if text == "" {
		return nil, driver.Errorf(driver.InvalidRequest, "tag %q has snapshots already, of images one by one", tag)
	}
	g, all, err := parseRecord(text)
	if err != nil {
		return nil, err
	}
	if whole, err := d.settled(ctx, g, tag); err != nil {
		return nil, err
	} else if !whole {
		return nil, d.takeBack(ctx, tag, g, all)
	}
	if slices.Contains(found, nil) || len(all) != len(images) {
		return nil, driver.Errorf(driver.InvalidRequest, "tag %q is a group of %d images, other ones or given back in part", tag, len(all))
	}
	ss := make([]driver.Snapshot, len(images))
	for i, l := range found {
		ss[i] = l.driver(images[i].at(tag))
	}
	return ss, d.leave(ctx, g, images)
}

// canGroup refuses images whose group snapshot would not be one instant, or could
// not be read.
func (d *Driver) canGroup(ctx context.Context, images []image, infos []info) error {
	for i, x := range infos {
		if !slices.Contains(x.Features, "exclusive-lock") {
			return driver.Errorf(driver.NotSupported, "image %s is without the feature exclusive-lock, so nothing keeps its clients from writing while the others' snapshots are made", images[i])
		}
		if images[i].namespace != images[0].namespace {
			return driver.Errorf(driver.NotSupported, "images %s and %s are in different namespaces, and no group of Ceph's spans two", images[0], images[i])
		}
	}
	return d.canView(ctx)
}

// note writes down on each image what it is about to be a member of.
func (d *Driver) note(ctx context.Context, tag driver.Tag, g group, images []image) error {
	r := record{Group: g.String()}
	for _, i := range images {
		r.Images = append(r.Images, i.String())
	}
	return each(len(images), func(i int) error {
		return d.remember(ctx, images[i], images[i].at(tag).grouped(), text(r))
	})
}

// members returns the snapshots of all images that a group snapshot has made.
func (d *Driver) members(ctx context.Context, tag driver.Tag, images []image) ([]driver.Snapshot, error) {
	ss := make([]driver.Snapshot, len(images))
	err := each(len(images), func(i int) error {
		s := images[i].at(tag)
		l, err := d.find(ctx, s)
		if d.is(err, driver.NotFound) {
			err = driver.Errorf(driver.Busy, "image %s was taken out of its group while that was split", images[i])
		}
		ss[i] = l.driver(s)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ss, nil
}
