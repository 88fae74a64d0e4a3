package lvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// Method is how an array of this type splits.
type Method string

const (
	// TrackedSplit takes an image off a raid1 volume, read-only, and puts it back
	// with what changed.
	TrackedSplit Method = "tracked-split"
	// FullSplit takes an image off for good; the next set copies a whole new one.
	FullSplit Method = "split"
	// Snapshots are lvm2's own, thick or thin.
	Snapshots Method = "snapshot"
)

// Methods are all of them.
func Methods() []Method { return []Method{TrackedSplit, FullSplit, Snapshots} }

// Options of a Driver.
type Options struct {
	Group  string // name of the volume group
	Method Method
	// Devices are the physical volumes that lvm2 may look at (--devices). Default:
	// what its own configuration lets it see.
	Devices []string
	// Room is what a thick snapshot can hold of changes, in per cent of its volume.
	// Default: 20.
	Room int
	// Limit is the longest that a command may take, where a caller leaves more.
	// Default: a minute.
	Limit time.Duration
	// Program is lvm(8). Default: /usr/sbin/lvm.
	Program string
	// Log gets what was done about commands that had to be killed. Default: none.
	Log *slog.Logger
}

// Driver is a volume group. Its methods may be called at once; those that change it
// come one after the other.
type Driver struct {
	o   Options
	run runner
	// turn is held by who changes the group.
	turn chan struct{}
	// path is the device of a logical volume.
	path func(*group, *lv) (string, error)
	// anybody may run it; of tests.
	anybody bool
}

// New checks the options. Nothing is run.
func New(o Options) (*Driver, error) {
	if o.Program == "" {
		o.Program = "/usr/sbin/lvm"
	}
	if o.Room == 0 {
		o.Room = 20
	}
	if o.Limit == 0 {
		o.Limit = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	bad := func(format string, args ...any) (*Driver, error) {
		return nil, driver.Errorf(driver.InvalidRequest, format, args...)
	}
	switch {
	case !nameForm.MatchString(o.Group):
		return bad("volume group %.80q: want a name of letters, digits and +_.-", o.Group)
	case !slices.Contains(Methods(), o.Method):
		return bad("method %.40q: want one of %v", o.Method, Methods())
	case o.Room < 1 || o.Room > 100:
		return bad("room for changes of %d%%: want 1 to 100", o.Room)
	case o.Limit < 0:
		return bad("limit %v is negative", o.Limit)
	case !filepath.IsAbs(o.Program):
		return bad("program %q is not an absolute path", o.Program)
	}
	for _, d := range o.Devices {
		if !strings.HasPrefix(d, "/dev/") || strings.ContainsAny(d, ", \t\n") {
			return bad("device %.80q: want a path below /dev", d)
		}
	}
	return &Driver{o: o, run: command(o.Program), turn: make(chan struct{}, 1), path: devicePath}, nil
}

// Without lists the options that the method doesn't have, for arrays.New.
func (d *Driver) Without() []arrays.Capability {
	if d.o.Method == TrackedSplit {
		return []arrays.Capability{arrays.Rewrite} // its images can be read only
	}
	return []arrays.Capability{arrays.Resync}
}

// Kind implements driver.Driver.
func (d *Driver) Kind(err error) driver.Kind {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return driver.Unknown
}

// Describe implements driver.Describer.
func (d *Driver) Describe(ctx context.Context) (driver.Description, error) {
	out, err := d.lvm(ctx, "version")
	if err != nil {
		return driver.Description{}, asked(err)
	}
	return Describe(d.o.Method, versionOf(out)), nil
}

// Describe is what lvm2 of a release can do by a method.
func Describe(m Method, version string) driver.Description {
	return driver.Description{
		Provider: "lvm", Version: version,
		MirrorSplit: m != Snapshots, Snapshot: m == Snapshots, Resync: m == TrackedSplit, Rewrite: m != TrackedSplit,
	}
}

// lvm runs a command under the limit, with what every one of them gets.
func (d *Driver) lvm(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, d.o.Limit)
	defer cancel()
	if args[0] != "version" {
		// Guests' volume groups that lie in logical volumes are not looked for.
		args = append(args, "--config", "devices { scan_lvs = 0 }")
		if len(d.o.Devices) > 0 {
			args = append(args, "--devices", strings.Join(d.o.Devices, ","))
		}
	}
	return d.run(ctx, args...)
}

// asked classifies the error of a command that changes nothing.
func asked(err error) error {
	var failed *commandError
	if err == nil || errors.As(err, &failed) {
		return err
	}
	return driver.Errorf(driver.Unreachable, "%w", err)
}

// read asks for the group as it is.
func (d *Driver) read(ctx context.Context) (*group, error) {
	out, err := d.lvm(ctx, "lvs", "-a", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "-o", fields, d.o.Group)
	if err != nil {
		return nil, asked(err)
	}
	return parse(d.o.Group, out)
}

// change runs a command that changes the group. Its outcome is unknown if it did
// not end by itself.
func (d *Driver) change(ctx context.Context, args ...string) error {
	_, err := d.lvm(ctx, args...)
	var killed *killedError
	switch {
	case errors.As(err, &killed):
		if killed.hard {
			d.release()
		}
		return driver.Errorf(driver.OutcomeUnknown, "%w", err)
	case errors.Is(err, errNotRun):
		return driver.Errorf(driver.Unreachable, "%w", err)
	}
	return err
}

// releaseWithin bounds what is done about a command that had to be killed.
const releaseWithin = 20 * time.Second

// release resumes volumes that a killed command has left suspended: whoever writes
// to them hangs until then. It says what it did, and returns nothing: whether the
// command was done is asked later.
func (d *Driver) release() {
	ctx, cancel := context.WithTimeout(context.Background(), releaseWithin)
	defer cancel()
	g, err := d.read(ctx)
	if err != nil {
		d.o.Log.Error("a command of lvm2 was killed, and whether it left volumes suspended is not known", "group", d.o.Group, "error", err)
		return
	}
	for _, v := range g.lvs {
		if !v.suspended || v.internal {
			continue
		}
		_, err := d.lvm(ctx, "lvchange", "--refresh", g.path(v))
		d.o.Log.Warn("a killed command of lvm2 had left a volume suspended", "volume", g.path(v), "resumed", err == nil, "error", err)
	}
}

// alone waits for its turn to change the group.
func (d *Driver) alone(ctx context.Context) (over func(), err error) {
	select {
	case d.turn <- struct{}{}:
		return func() { <-d.turn }, nil
	case <-ctx.Done():
		return nil, driver.Errorf(driver.Unreachable, "another change of group %s is under way: %w", d.o.Group, ctx.Err())
	}
}

// Resolve implements driver.Driver: a disk is known by the device that its path is.
func (d *Driver) Resolve(ctx context.Context, disk driver.Disk) (driver.Volume, error) {
	if disk.Path == "" {
		return driver.Volume{}, driver.Errorf(driver.NotMine, "logical volumes are known by their devices on this host only")
	}
	var st unix.Stat_t
	if err := unix.Stat(disk.Path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return driver.Volume{}, driver.Errorf(driver.NotMine, "%s is no block device of this host", disk.Path)
	}
	g, err := d.read(ctx)
	if err != nil {
		return driver.Volume{}, err
	}
	for _, v := range g.lvs {
		if v.active && v.major == int64(unix.Major(st.Rdev)) && v.minor == int64(unix.Minor(st.Rdev)) && g.isVolume(v) {
			return d.volume(g, v), nil
		}
	}
	return driver.Volume{}, driver.Errorf(driver.NotMine, "%s is no volume of group %s", disk.Path, d.o.Group)
}

// volume is a logical volume as this array splits it.
func (d *Driver) volume(g *group, v *lv) driver.Volume {
	x := g.volume(v)
	x.FullCopy = d.o.Method == FullSplit
	return x
}

// isVolume reports whether production may write to a logical volume: it is no part
// of another, and no snapshot of ours.
func (g *group) isVolume(v *lv) bool {
	return !v.internal && v.plays("public") && !v.is("pool") && v.value(tagTag) == "" && v.size > 0
}

// volume describes a logical volume.
func (g *group) volume(v *lv) driver.Volume {
	x := driver.Volume{ID: driver.VolumeID(v.uuid), Name: g.path(v), Size: v.size, State: driver.Synchronized, Mirrors: 1}
	if v.is("raid1") {
		x.Mirrors = 0
		for _, i := range g.images(v) {
			if i.synced {
				x.Mirrors++
			}
		}
		if !g.inSync(v) {
			x.State = driver.Unsynchronized
		}
	}
	if v.suspended {
		x.State = driver.Suspended
	}
	return x
}

// find is a volume that may be split now.
func (g *group) find(id driver.VolumeID) (*lv, error) {
	v := g.byUUID(string(id))
	switch {
	case v == nil || !g.isVolume(v):
		return nil, driver.Errorf(driver.NotFound, "group %s has no volume %.60q", g.name, id)
	case !v.active:
		return nil, driver.Errorf(driver.Busy, "%s is not active on this host", g.path(v))
	case g.shared && !v.exclusive:
		return nil, driver.Errorf(driver.Busy, "%s is in a shared volume group and not active exclusively here: another host may write to it", g.path(v))
	case v.suspended:
		return nil, driver.Errorf(driver.Busy, "%s is suspended: another command may be changing it; if none is, `lvchange --refresh %s` resumes it", g.path(v), g.path(v))
	}
	return v, nil
}

// devicePath is the device of a logical volume, checked by the UUID that LVM gives
// device-mapper ("LVM-", then the group's and the volume's without dashes).
func devicePath(g *group, v *lv) (string, error) {
	if !v.active || v.minor < 0 {
		return "", driver.Errorf(driver.Busy, "%s is not active on this host", g.path(v))
	}
	name := "dm-" + strconv.FormatInt(v.minor, 10)
	b, err := os.ReadFile(filepath.Join("/sys/block", name, "dm/uuid"))
	if err != nil {
		return "", fmt.Errorf("%s: %w", g.path(v), err)
	}
	want := "LVM-" + strings.ReplaceAll(g.uuid+v.uuid, "-", "")
	if got := strings.TrimSpace(string(b)); !strings.HasPrefix(got, want) {
		return "", fmt.Errorf("%s: %s is %.100q by now", g.path(v), name, got)
	}
	return "/dev/" + name, nil
}
