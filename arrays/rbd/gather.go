package rbd

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// each runs fn for all of n at once, and returns the first error.
func each(n int, fn func(int) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			errs[i] = fn(i)
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// at names a group's snapshot to the command. It takes options for that, but in
// release 16 forgets the namespace of some.
func (g group) at(t driver.Tag) string { return g.String() + "@" + prefix + string(t) }

// gather returns the group that is these images. Where they are in none, one is
// made of them; what an earlier attempt left behind is taken apart.
func (d *Driver) gather(ctx context.Context, tag driver.Tag, images []image, infos []info) (group, error) {
	for i, x := range infos {
		if x.Group == "" {
			continue
		}
		in, err := parseImage(x.Group)
		g := group(in)
		if err != nil || !d.ours(in) {
			return g, driver.Errorf(driver.NotSupported, "image %s is in group %.80q, which is in no pool that is configured or has a name that can't be used here", images[i], x.Group)
		}
		if g == images[0].groupOf(tag) {
			continue
		}
		with, err := d.imagesOf(ctx, g)
		if err != nil {
			return g, err
		}
		if !g.ours() {
			if same(with, images) {
				return g, nil
			}
			return g, driver.Errorf(driver.NotSupported, "image %s is in group %s with other images than those of this set, and Ceph splits whole groups", images[i], g)
		}
		if err := d.release(ctx, g, with, images[i]); err != nil {
			return g, err
		}
	}
	g := images[0].groupOf(tag)
	if err := d.do(ctx, "group", "create", g.String()); err != nil {
		if there, lost := d.groups(ctx, image(g)); lost != nil || !slices.Contains(there, g.name) {
			return g, err
		}
	}
	err := each(len(images), func(i int) error {
		return d.do(ctx, "group", "image", "add", g.String(), images[i].String()) // it may be there already
	})
	var in []image
	if err == nil {
		in, err = d.imagesOf(ctx, g)
	}
	if err == nil && !same(in, images) {
		err = driver.Errorf(driver.Busy, "group %s has %d images and not the %d that are to be split", g, len(in), len(images))
	}
	if err != nil {
		_ = d.takeBack(ctx, tag, g, images)
	}
	return g, err
}

func same(a, b []image) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(i image) bool { return !slices.Contains(b, i) })
}

// release takes an image out of a group of an earlier set: its snapshots stay. A
// group that never had any goes.
func (d *Driver) release(ctx context.Context, g group, in []image, i image) error {
	tag := driver.Tag(g.name[len(prefix):])
	whole, err := d.settled(ctx, g, tag)
	if err != nil {
		return err
	}
	if !whole {
		return d.takeBack(ctx, tag, g, in)
	}
	return d.leave(ctx, g, []image{i})
}

// leave takes images out of a group of ours, whose snapshots stay: an image can be
// in one group only, and the next set may be another one.
func (d *Driver) leave(ctx context.Context, g group, images []image) error {
	if !g.ours() {
		return nil
	}
	in, err := d.imagesOf(ctx, g)
	if err != nil {
		return err
	}
	return each(len(images), func(i int) error {
		if !slices.Contains(in, images[i]) {
			return nil
		}
		err := d.do(ctx, "group", "image", "rm", g.String(), images[i].String())
		if d.is(err, driver.NotFound) {
			return nil
		}
		return err
	})
}

// takeBack undoes what was done for a group snapshot that came to nothing.
func (d *Driver) takeBack(ctx context.Context, tag driver.Tag, g group, images []image) error {
	err := d.do(ctx, "group", "snap", "rm", g.at(tag))
	if err != nil && !d.is(err, driver.NotFound) {
		return err
	}
	if err := d.dissolve(ctx, g); err != nil {
		return err
	}
	return each(len(images), func(i int) error { return d.forget(ctx, images[i], images[i].at(tag).grouped()) })
}

// dissolve ends a group of ours, whose images stay.
func (d *Driver) dissolve(ctx context.Context, g group) error {
	if !g.ours() {
		return nil
	}
	in, err := d.imagesOf(ctx, g)
	if err == nil {
		err = d.leave(ctx, g, in)
	}
	if err == nil {
		err = d.do(ctx, "group", "rm", g.String())
	}
	if d.is(err, driver.NotFound) {
		return nil
	}
	return err
}

// groups are the names of the groups beside an image.
func (d *Driver) groups(ctx context.Context, i image) (names []string, err error) {
	err = d.ask(ctx, &names, append([]string{"group", "ls"}, i.where()...)...)
	return names, err
}

// imagesOf are a group's images; of one that is not there, none.
func (d *Driver) imagesOf(ctx context.Context, g group) ([]image, error) {
	var all []struct {
		Image     string `json:"image"`
		Pool      string `json:"pool"`
		Namespace string `json:"namespace"`
	}
	err := d.ask(ctx, &all, "group", "image", "ls", g.String())
	if d.is(err, driver.NotFound) {
		return nil, nil
	}
	var out []image
	for _, x := range all {
		out = append(out, image{x.Pool, x.Namespace, x.Image})
	}
	return out, err
}

// settleLimit is how long a group snapshot that is being made is waited for: by
// another process, as ours waits for its own.
const settleLimit = 5 * time.Second

// settled reports whether a group snapshot is there and whole.
func (d *Driver) settled(ctx context.Context, g group, tag driver.Tag) (bool, error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(settleLimit); ; {
		var all []struct {
			Name  string `json:"snapshot"`
			State string `json:"state"`
		}
		err := d.ask(ctx, &all, "group", "snap", "ls", g.String())
		if d.is(err, driver.NotFound) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		i := -1
		for j, x := range all {
			if x.Name == prefix+string(tag) {
				i = j
			}
		}
		if i < 0 || all[i].State == "ok" || time.Now().After(late) {
			return i >= 0 && all[i].State == "ok", nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false, driver.Errorf(driver.Unreachable, "group snapshot %s: %w", g.at(tag), context.Cause(ctx))
		}
	}
}

// lookupGroup finds the tag's group snapshot, in whichever group. What is left of an
// attempt that came to nothing is taken away: nobody was told of it.
func (d *Driver) lookupGroup(ctx context.Context, tag driver.Tag) (found []driver.Snapshot, err error) {
	for _, p := range d.pools {
		names, err := d.groups(ctx, p)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			g := group{p.pool, p.namespace, name}
			if g.ours() && g != p.groupOf(tag) || !plain(name) {
				continue
			}
			whole, err := d.settled(ctx, g, tag)
			if err != nil {
				return nil, err
			}
			if !whole && !g.ours() {
				continue
			}
			all, err := d.memberImages(ctx, g, tag)
			if err == nil && !whole {
				err = d.takeBack(ctx, tag, g, all)
			}
			if err != nil {
				return nil, err
			}
			for _, i := range all {
				l, err := d.find(ctx, i.at(tag))
				if whole && err == nil {
					found = append(found, l.driver(i.at(tag)))
				} else if err != nil && !d.is(err, driver.NotFound) {
					return nil, err
				}
			}
		}
	}
	return found, nil
}

// memberImages are the images of a group snapshot: those that are in the group, or
// what the first one says that has the tag in its metadata.
func (d *Driver) memberImages(ctx context.Context, g group, tag driver.Tag) ([]image, error) {
	in, err := d.imagesOf(ctx, g)
	if err != nil {
		return nil, err
	}
	for _, p := range d.pools {
		var names []string
		if p.namespace != g.namespace {
			continue
		}
		if err := d.ask(ctx, &names, append([]string{"ls"}, p.where()...)...); err != nil {
			return nil, err
		}
		for _, name := range names {
			in = append(in, image{p.pool, p.namespace, name})
		}
	}
	for _, i := range in {
		if i.isView() {
			continue
		}
		known, err := d.remembered(ctx, i)
		if d.is(err, driver.NotFound) { // gone meanwhile
			continue
		} else if err != nil {
			return nil, err
		}
		if text := known[i.at(tag).grouped()]; text != "" {
			_, all, err := parseRecord(text)
			return all, err
		}
	}
	return nil, nil
}
