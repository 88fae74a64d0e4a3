package program

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

func (d *Driver) describe(ctx context.Context) (x described, err error) {
	err = d.ask(ctx, callDescribe, "", struct{}{}, &x)
	if err == nil {
		err = callDescribe.checkName(x.Provider)
	}
	return x, err
}

// Describe implements driver.Describer.
func (d *Driver) Describe(ctx context.Context) (driver.Description, error) {
	x, err := d.describe(ctx)
	return x.Description, err
}

// Resolve implements driver.Driver.
func (d *Driver) Resolve(ctx context.Context, disk driver.Disk) (v driver.Volume, err error) {
	err = d.ask(ctx, callResolve, "", disk, &v)
	if err == nil {
		err = callResolve.checkName(string(v.ID))
	}
	return v, err
}

// Prepare implements driver.Driver.
func (d *Driver) Prepare(ctx context.Context, vs []driver.VolumeID, o driver.PrepareOptions) error {
	return d.ask(ctx, callPrepare, string(o.Tag), prepareArgs{o, vs}, nil)
}

// Split implements driver.Driver.
func (d *Driver) Split(ctx context.Context, tag driver.Tag, v driver.VolumeID) (driver.Snapshot, error) {
	ss, err := d.snapshots(ctx, callSplit, tag, splitArgs{tag, []driver.VolumeID{v}})
	if err != nil {
		return driver.Snapshot{}, err
	}
	if len(ss) != 1 || ss[0].Volume != v {
		return driver.Snapshot{}, driver.Errorf(driver.OutcomeUnknown, "the program's result of split: %d snapshots, want one of volume %q", len(ss), v)
	}
	return ss[0], nil
}

// SplitGroup implements driver.GroupSplitter.
func (d *Driver) SplitGroup(ctx context.Context, tag driver.Tag, vs []driver.VolumeID) ([]driver.Snapshot, error) {
	return d.snapshots(ctx, callSplitGroup, tag, splitArgs{tag, vs})
}

// Lookup implements driver.Driver.
func (d *Driver) Lookup(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	return d.snapshots(ctx, callLookup, tag, tagArgs{tag})
}

// Arm implements driver.Armer.
func (d *Driver) Arm(ctx context.Context, tag driver.Tag, vs []driver.VolumeID, abortAfter time.Duration) error {
	return d.ask(ctx, callArm, string(tag), armArgs{splitArgs{tag, vs}, abortAfter.Seconds()}, nil)
}

// Commit implements driver.Armer.
func (d *Driver) Commit(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	return d.snapshots(ctx, callCommit, tag, tagArgs{tag})
}

// Abort implements driver.Armer.
func (d *Driver) Abort(ctx context.Context, tag driver.Tag) error {
	return d.ask(ctx, callAbort, string(tag), tagArgs{tag}, nil)
}

// snapshots makes a call that answers with snapshots of a tag.
func (d *Driver) snapshots(ctx context.Context, c call, tag driver.Tag, args any) (ss []driver.Snapshot, err error) {
	if err := d.ask(ctx, c, string(tag), args, &ss); err != nil {
		return nil, err
	}
	for i, s := range ss {
		err := c.checkSnapshot(s)
		if err == nil && s.Tag != tag {
			err = driver.Errorf(c.lost(), "the program's result of %s: snapshot %d has tag %.80q, want %q", c, i+1, s.Tag, tag)
		}
		if err != nil {
			return nil, err
		}
	}
	return ss, nil
}

// Delete implements driver.Driver.
func (d *Driver) Delete(ctx context.Context, s driver.SnapshotID) error {
	if err := d.rewriting.refuse(s); err != nil {
		return err
	}
	return gone(d.ask(ctx, callDelete, string(s), snapshotArgs{s}, nil))
}

// gone is the outcome of taking away what may not have been there: success too.
func gone(err error) error {
	var e *driver.Error
	if errors.As(err, &e) && e.Kind == driver.NotFound {
		return nil
	}
	return err
}

// Expose implements driver.Exposer.
func (d *Driver) Expose(ctx context.Context, s driver.SnapshotID, o driver.ExposeOptions) (p driver.Path, err error) {
	if err := d.rewriting.refuse(s); err != nil {
		return p, err
	}
	if err = d.ask(ctx, callExpose, string(s), exposeArgs{o, s}, &p); err != nil {
		return p, err
	}
	for _, name := range append(slices.Clone(p.Portals), p.IQN) {
		if err := callExpose.checkName(name); err != nil {
			return p, err
		}
	}
	return p, nil
}

// Unexpose implements driver.Exposer.
func (d *Driver) Unexpose(ctx context.Context, s driver.SnapshotID) error {
	return gone(d.ask(ctx, callUnexpose, string(s), snapshotArgs{s}, nil))
}

// Resync implements driver.Resyncer.
func (d *Driver) Resync(ctx context.Context, s driver.SnapshotID) error {
	if err := d.rewriting.refuse(s); err != nil {
		return err
	}
	return d.ask(ctx, callResync, string(s), snapshotArgs{s}, nil)
}

// Revert implements driver.Reverter.
func (d *Driver) Revert(ctx context.Context, s driver.SnapshotID) (safe driver.Snapshot, err error) {
	if err := d.rewriting.refuse(s); err != nil {
		return safe, err
	}
	if err = d.ask(ctx, callRevert, string(s), snapshotArgs{s}, &safe); err == nil {
		err = callRevert.checkSnapshot(safe)
	}
	return safe, err
}

// Break implements driver.Breaker.
func (d *Driver) Break(ctx context.Context, s driver.SnapshotID, name string) (v driver.Volume, err error) {
	if err := d.rewriting.refuse(s); err != nil {
		return v, err
	}
	if err = d.ask(ctx, callBreak, string(s), breakArgs{s, name}, &v); err == nil {
		err = callBreak.checkName(string(v.ID))
	}
	return v, err
}

// Changes implements driver.ChangeTracker.
func (d *Driver) Changes(ctx context.Context, v driver.VolumeID, from, to driver.SnapshotID) (driver.Changes, error) {
	var x changed
	if err := d.ask(ctx, callChanges, string(v), changesArgs{v, from, to}, &x); err != nil {
		return driver.Changes{}, err
	}
	c := driver.Changes{Granularity: x.Granularity, Regions: make([]lun.Extent, len(x.Regions))}
	for i, r := range x.Regions {
		c.Regions[i] = lun.Extent{Off: r.Off, Len: r.Len}
	}
	return c, nil
}

// PresentedTo implements driver.Presenter.
func (d *Driver) PresentedTo(ctx context.Context, v driver.VolumeID) (names []string, err error) {
	err = d.ask(ctx, callPresented, string(v), volumeArgs{v}, &names)
	for _, n := range names {
		err = cmp.Or(err, callPresented.checkName(n))
	}
	return names, err
}

// checkName refuses identifiers that would not survive a journal or a log line.
func (c call) checkName(id string) error {
	if id == "" || len(id) > maxName || !utf8.ValidString(id) || !printable(id) {
		return driver.Errorf(c.lost(), "the program's result of %s: identifier %.80q: want 1 to %d printable bytes", c, id, maxName)
	}
	return nil
}

// checkPath refuses paths that no file has.
func (c call) checkPath(path string) error {
	if path == "" || len(path) > maxPath || !utf8.ValidString(path) || !printable(path) {
		return driver.Errorf(c.lost(), "the program's result of %s: path %.80q: want 1 to %d printable bytes", c, path, maxPath)
	}
	return nil
}

func printable(s string) bool {
	return !slices.ContainsFunc([]rune(s), func(r rune) bool { return !unicode.IsPrint(r) })
}

func (c call) checkSnapshot(s driver.Snapshot) error {
	if err := c.checkName(string(s.ID)); err != nil {
		return err
	}
	switch {
	case s.Size <= 0:
		return driver.Errorf(c.lost(), "the program's result of %s: snapshot %q has %d bytes", c, s.ID, s.Size)
	case s.Method != driver.MirrorSplit && s.Method != driver.ArraySnapshot:
		return driver.Errorf(c.lost(), "the program's result of %s: snapshot %q: method %.40q: want %s or %s", c, s.ID, s.Method, driver.MirrorSplit, driver.ArraySnapshot)
	case s.Held < 0:
		return driver.Errorf(c.lost(), "the program's result of %s: snapshot %q was held for %v", c, s.ID, s.Held)
	}
	return nil
}
