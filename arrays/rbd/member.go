package rbd

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Members of group snapshots have numbers and no names by which a client opens
// them. An image that is imported from a member by its number, live and without
// its end, is a view of it: reads go through to the member.

const viewPrefix = "cleave-view."

func (i image) isView() bool { return strings.HasPrefix(i.name, viewPrefix) }

// view is the name of the image by which a member is read.
func (s snap) view() image {
	return image{s.pool, s.namespace, viewPrefix + string(s.tag()) + "." + s.image.name}
}

// importsFrom is the first release of Ceph whose images can be imported from
// others.
const importsFrom = 16

// canView refuses group snapshots where they could not be read.
func (d *Driver) canView(ctx context.Context) error {
	out, err := d.run(ctx, false, []string{"--version"})
	if err != nil {
		return err
	}
	var release int
	if _, err := fmt.Sscanf(string(out), "ceph version %d.", &release); err != nil || release < importsFrom {
		return driver.Errorf(driver.NotSupported, "this host's rbd (%.40q) can make group snapshots and not read them; that takes release %d", strings.TrimSpace(string(out)), importsFrom)
	}
	return nil
}

// readable is what a client opens to read a snapshot.
func (d *Driver) readable(ctx context.Context, s snap) (i image, name string, err error) {
	l, err := d.find(ctx, s)
	if err != nil || !l.isMember() {
		return s.image, s.name, err
	}
	i, err = d.makeView(ctx, s, l)
	return i, "", err
}

// makeView makes the view of a member, or finds that it is there.
func (d *Driver) makeView(ctx context.Context, s snap, l listed) (image, error) {
	v := s.view()
	switch state, err := d.viewState(ctx, v); {
	case err != nil:
		return v, err
	case state == "prepared":
		return v, nil
	case state != "":
		if err := d.endView(ctx, s); err != nil {
			return v, err
		}
	}
	x, err := d.info(ctx, s.image)
	if err != nil {
		return v, err
	}
	source := map[string]any{"type": "native", "pool_name": s.pool, "pool_namespace": s.namespace, "image_name": s.image.name, "image_id": x.ID, "snap_id": strconv.FormatUint(l.ID, 10)}
	return v, d.do(ctx, append([]string{"migration", "prepare", "--import-only"}, append(v.args(), "--source-spec="+text(source))...)...)
}

// viewState is how far a view has come: empty where it is not there.
func (d *Driver) viewState(ctx context.Context, v image) (string, error) {
	var x struct {
		Migration struct {
			State string `json:"state"`
		} `json:"migration"`
	}
	err := d.ask(ctx, &x, append([]string{"status"}, v.args()...)...)
	switch {
	case d.is(err, driver.NotFound):
		return "", nil
	case err == nil && x.Migration.State == "":
		return "unknown", nil
	}
	return x.Migration.State, err
}

// part is the image that a member is copied to until it is whole.
func (s snap) part() image {
	i := s.view()
	i.name += ".copy"
	return i
}

// discard removes an image of ours, if it is there.
func (d *Driver) discard(ctx context.Context, i image) error {
	err := d.do(ctx, append([]string{"rm", "--no-progress"}, i.args()...)...)
	if d.is(err, driver.NotFound) {
		return nil
	}
	return err
}

// endView takes a member's view away.
func (d *Driver) endView(ctx context.Context, s snap) error {
	err := d.do(ctx, append([]string{"migration", "abort", "--no-progress"}, s.view().args()...)...)
	if d.is(err, driver.NotFound) {
		return nil
	}
	if d.is(err, driver.InvalidRequest) { // it was begun and is no import yet
		err = d.discard(ctx, s.view())
	}
	return err
}

// removeMember deletes a member of a group snapshot, and with the last one the
// group's record of it. What is known is forgotten last.
func (d *Driver) removeMember(ctx context.Context, s snap, l listed, known string) error {
	if err := d.discard(ctx, s.part()); err != nil {
		return err
	}
	if err := d.endView(ctx, s); err != nil {
		return err
	}
	if l.isMember() {
		err := d.do(ctx, append([]string{"snap", "rm", "--snap-id=" + strconv.FormatUint(l.ID, 10)}, s.image.args()...)...)
		if err != nil && !d.is(err, driver.NotFound) {
			return err
		}
	}
	if known == "" {
		return nil
	}
	g, all, err := parseRecord(known)
	if err != nil {
		return err
	}
	for _, i := range all {
		if i == s.image {
			continue
		}
		if _, err := d.find(ctx, i.at(s.tag())); err == nil {
			return d.forget(ctx, s.image, s.grouped())
		} else if !d.is(err, driver.NotFound) {
			return err
		}
	}
	return d.takeBack(ctx, s.tag(), g, []image{s.image})
}

// copyBack writes what a member holds over its image, where they differ.
func (d *Driver) copyBack(ctx context.Context, s snap) error {
	v, _, err := d.readable(ctx, s)
	if err != nil {
		return err
	}
	x, err := d.info(ctx, v)
	if err != nil {
		return err
	}
	from, err := d.serve(ctx, source{v, "", true})
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := d.serve(ctx, source{s.image, "", false})
	if err != nil {
		return err
	}
	defer to.Close()
	if to.Size() != x.Size {
		return driver.Errorf(driver.NotSupported, "image %s has %d bytes now and had %d", s.image, to.Size(), x.Size)
	}
	if err := copyOver(ctx, to, from); err != nil {
		return driver.Errorf(driver.OutcomeUnknown, "copying snapshot %s back: %w", s.id(), err)
	}
	return nil
}

// copyOver makes one device hold what another one does.
func copyOver(ctx context.Context, to, from lun.Device) error {
	was, is := make([]byte, 4<<20), make([]byte, 4<<20)
	for off := int64(0); off < from.Size(); off += int64(len(is)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(int64(len(is)), from.Size()-off)
		if _, err := from.ReadAt(is[:n], off); err != nil {
			return err
		}
		if _, err := to.ReadAt(was[:n], off); err != nil {
			return err
		}
		if bytes.Equal(was[:n], is[:n]) {
			continue
		}
		if _, err := to.WriteAt(is[:n], off); err != nil {
			return err
		}
	}
	return to.Sync()
}

// copyOff makes an image of a member. It has its name when it is whole.
func (d *Driver) copyOff(ctx context.Context, s snap, to image) error {
	v, _, err := d.readable(ctx, s)
	if err != nil {
		return err
	}
	part := s.part()
	if err := d.discard(ctx, part); err != nil {
		return err
	}
	between := func(verb string, from, to image, more ...string) error {
		args := append([]string{verb, "--dest-pool=" + to.pool, "--dest=" + to.name}, append(more, from.args()...)...)
		if to.namespace != "" {
			args = append(args, "--dest-namespace="+to.namespace)
		}
		return d.do(ctx, args...)
	}
	if err := between("copy", v, part, "--no-progress"); err != nil {
		return err
	}
	if err := d.remember(ctx, part, ofKey, string(s.id())); err != nil {
		return err
	}
	return between("rename", part, to)
}
