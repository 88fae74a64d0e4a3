package lvm

import (
	"context"
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/localdev"
	"github.com/cleave-san/cleave/lun"
)

// Lookup implements driver.Driver.
func (d *Driver) Lookup(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	g, err := d.read(ctx)
	if err != nil {
		return nil, err
	}
	var out []driver.Snapshot
	for _, s := range g.snapshots(string(tag)) {
		out = append(out, s.describe())
	}
	return out, nil
}

// Delete implements driver.Driver. The image of a tracked split goes back to its
// volume: there is no other end for it.
func (d *Driver) Delete(ctx context.Context, id driver.SnapshotID) error {
	return d.end(ctx, id, func(s snapshot, path string) []string {
		if s.tracked {
			return []string{"lvconvert", "-y", "--merge", path}
		}
		return []string{"lvremove", "-y", path}
	})
}

// Resync implements driver.Resyncer, for tracked splits.
func (d *Driver) Resync(ctx context.Context, id driver.SnapshotID) error {
	g, err := d.read(ctx)
	if err != nil {
		return err
	}
	switch s, ok := g.byID(id); {
	case !ok:
		return driver.Errorf(driver.NotFound, "group %s has no snapshot %.150q", d.o.Group, id)
	case !s.tracked:
		return driver.Errorf(driver.NotSupported, "%s does not go back: a new image is copied in full", g.path(s.lv))
	}
	return d.Delete(ctx, id)
}

// end gives a snapshot up by a command, and forgets the mark of its split.
func (d *Driver) end(ctx context.Context, id driver.SnapshotID, how func(s snapshot, path string) []string) error {
	over, err := d.alone(ctx)
	if err != nil {
		return err
	}
	defer over()
	g, err := d.read(ctx)
	if err != nil {
		return err
	}
	s, ok := g.byID(id)
	if !ok {
		return d.forgotten(ctx, g, id)
	}
	if s.open {
		return driver.Errorf(driver.Busy, "%s is open", g.path(s.lv))
	}
	if err := d.change(ctx, how(s, g.path(s.lv))...); err != nil {
		// It may have failed after the act.
		again, readErr := d.read(ctx)
		if readErr != nil || d.Kind(err) != driver.Unknown {
			return err
		}
		if _, there := again.byID(id); there {
			return err
		}
	}
	if s.of.value(tagSplit) == s.tag {
		return d.forget(ctx, g, s.of)
	}
	return nil
}

// forgotten takes the marks off that a set has left on volumes, whose snapshot is
// gone or never came to be.
func (d *Driver) forgotten(ctx context.Context, g *group, id driver.SnapshotID) error {
	tag, _, _ := strings.Cut(string(id), "@")
	if len(g.snapshots(tag)) > 0 {
		return nil // another one's
	}
	for _, v := range g.lvs {
		if tag != "" && v.value(tagSplit) == tag {
			if err := d.forget(ctx, g, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// Open implements driver.Opener.
func (d *Driver) Open(ctx context.Context, id driver.SnapshotID) (lun.Device, error) {
	_, path, err := d.usable(ctx, id)
	if err != nil {
		return nil, err
	}
	return localdev.Open(path)
}

// Rewrite implements driver.Rewriter, for what can be written to. The first write
// waits until the volume group says that it happens.
func (d *Driver) Rewrite(ctx context.Context, id driver.SnapshotID) (lun.Device, error) {
	s, path, err := d.usable(ctx, id)
	if err != nil {
		return nil, err
	}
	if s.tracked {
		return nil, driver.Errorf(driver.NotSupported, "%s can be read only: changes are tracked", s.name)
	}
	return localdev.Rewrite(ctx, path, localdev.Hooks{Before: func() error {
		if s.tagged(tagSkewed) {
			return nil
		}
		// The context of Rewrite is over by now; the command has a limit of its own.
		over, err := d.alone(context.Background())
		if err != nil {
			return err
		}
		defer over()
		return d.change(context.Background(), "lvchange", "--addtag", tagSkewed, d.o.Group+"/"+s.name)
	}})
}

// usable finds a snapshot that holds what it should, and its device.
func (d *Driver) usable(ctx context.Context, id driver.SnapshotID) (snapshot, string, error) {
	g, err := d.read(ctx)
	if err != nil {
		return snapshot{}, "", err
	}
	s, ok := g.byID(id)
	if !ok {
		return s, "", driver.Errorf(driver.NotFound, "group %s has no snapshot %.150q", d.o.Group, id)
	}
	if s.describe().State == driver.Invalid {
		why := s.health
		if s.invalid {
			why = fmt.Sprintf("its room of %d MiB for changes was not enough", s.size>>20)
		}
		return s, "", fmt.Errorf("%s is of no use: %s", g.path(s.lv), why)
	}
	path, err := d.path(g, s.lv)
	return s, path, err
}

var (
	_ driver.Driver    = (*Driver)(nil)
	_ driver.Describer = (*Driver)(nil)
	_ driver.Opener    = (*Driver)(nil)
	_ driver.Rewriter  = (*Driver)(nil)
	_ driver.Resyncer  = (*Driver)(nil)
)
