package lvm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Check implements driver.Checker: whether this user may run lvm2, how the volume
// group is, and for each volume of the next set whether it can be split by the
// method and what that takes of the group or its thin pool. Where no set is named,
// each volume that is active here is judged by itself.
func (d *Driver) Check(ctx context.Context, next []driver.VolumeID) ([]driver.Finding, error) {
	fs := []driver.Finding{{
		Area: driver.AreaPermission, Check: "run lvm2", Result: driver.OK, Detail: "as root",
	}}
	if uid := os.Geteuid(); uid != 0 && !d.anybody {
		fs[0].Result, fs[0].Detail, fs[0].Try = driver.Failed, fmt.Sprintf("lvm2 needs root, and this is user %d", uid), "run cleave serve, and this command, as root"
	}
	w, err := d.whole(ctx)
	var g *group
	if err == nil {
		g, err = d.read(ctx)
	}
	if err != nil {
		if d.Kind(err) == driver.Unreachable { // lvm2 could not be run, or did not end
			return fs, err
		}
		return append(fs, driver.Finding{
			Area: driver.AreaReach, Check: "volume group " + d.o.Group, Result: driver.Failed, Detail: err.Error(), Try: "`vgs " + d.o.Group + "`, and the array's devices in the configuration",
		}), nil
	}
	fs = append(fs, w.findings(g)...)
	c := &taken{d: d, g: g, size: w.size, found: fs, pools: map[*lv]bool{}, named: len(next) > 0}
	for _, id := range next {
		v, err := g.find(id)
		if err != nil {
			c.refused("split of volume "+string(id), err)
			continue
		}
		c.split(v)
	}
	if len(next) == 0 {
		for _, v := range g.lvs {
			if g.isVolume(v) && v.active {
				if _, err := g.find(driver.VolumeID(v.uuid)); err != nil {
					c.refused("split of volume "+g.path(v), err)
					continue
				}
				c.split(v)
			}
		}
	}
	c.limits()
	for _, x := range g.snapshots("") {
		if x.invalid {
			c.found = append(c.found, driver.Finding{
				Area: driver.AreaHealth, Check: "snapshot " + g.path(x.lv), Result: driver.Warning, Detail: "it overflowed and is invalid",
				Try: "delete its set, and give snapshots more room",
			})
		}
	}
	return c.found, nil
}

// taken is what the splits of a set take of a group.
type taken struct {
	d     *Driver
	g     *group
	size  int64 // of the group
	need  int64 // bytes of the group: of all volumes of the set, or of the largest
	named bool  // the set was
	pools map[*lv]bool
	found []driver.Finding
}

func (c *taken) takes(n int64) {
	if c.named {
		c.need += n
	} else {
		c.need = max(c.need, n)
	}
}

// split tells whether a volume can be split, and counts what that takes.
func (c *taken) split(v *lv) {
	f := driver.Finding{Area: driver.AreaLimit, Check: "split of volume " + c.g.path(v), Result: driver.OK}
	if c.d.o.Method == Snapshots {
		if p := c.g.byUUID(v.pool); v.is("thin") && p != nil {
			c.pools[p] = true
			f.Detail = "by a thin snapshot in " + c.g.path(p)
		} else {
			n := v.size / 100 * int64(c.d.o.Room)
			c.takes(n)
			f.Detail = fmt.Sprintf("by a snapshot with room for %d%% of changes: %s", c.d.o.Room, driver.Bytes(n))
		}
		c.found = append(c.found, f)
		return
	}
	wanted, need, err := c.d.spare(c.g, v, true)
	if err != nil && need == 0 {
		c.refused(f.Check, err)
		return
	}
	c.takes(need)
	have := int64(len(c.g.images(v)))
	f.Limit = &driver.Limit{Unit: "images", Used: 0, Most: int64(wanted) - 1, Next: 1}
	f.Detail = fmt.Sprintf("%d of %d images are there", have, wanted)
	switch {
	case need > 0:
		f.Result, f.Try = driver.Warning, "wait, or choose method "+string(TrackedSplit)
		f.Detail += fmt.Sprintf("; the next set first copies a new one of %s", driver.Bytes(v.size))
	case !c.g.inSync(v):
		f.Result, f.Try = driver.Warning, "`lvs -a -o+sync_percent "+c.g.name+"`"
		f.Detail += fmt.Sprintf(", in sync to %.0f%%; the next set waits for that", max(v.sync, 0))
	case wanted < 3:
		f.Result, f.Try = driver.Warning, "--allow-unmirrored consents; `lvconvert -m 2 "+c.g.path(v)+"` gives it a third"
		f.Detail += "; the split leaves production with one"
	}
	c.found = append(c.found, f)
}

// refused tells why a volume can't be split. One that no set was named with may be
// none that a VM has.
func (c *taken) refused(check string, err error) {
	r := driver.Failed
	if !c.named {
		r = driver.Warning
	}
	c.found = append(c.found, driver.Finding{Area: driver.AreaHealth, Check: check, Result: r, Detail: err.Error(), Try: "`lvs -a " + c.g.name + "`"})
}

// limits tells what is left of the group and of thin pools.
func (c *taken) limits() {
	l := driver.Limit{Unit: "bytes", Used: max(c.size-c.g.free, 0), Most: max(c.size, c.g.free), Next: c.need}
	f := driver.Room("room in group "+c.g.name, l, "add a physical volume (vgextend), or lower the array's room")
	if f.Result == driver.Warning && c.need == 0 {
		f.Result, f.Try = driver.OK, "" // nothing is taken of it
	}
	c.found = append(c.found, f)
	for _, p := range c.g.lvs {
		if !c.pools[p] {
			continue
		}
		for _, x := range []struct {
			name string
			used float64
			try  string
		}{
			{"data", p.data, "`lvextend -L+… " + c.g.path(p) + "`"}, {"metadata", p.meta, "`lvextend --poolmetadatasize +… " + c.g.path(p) + "`"},
		} {
			f := driver.Finding{
				Area: driver.AreaLimit, Check: x.name + " of thin pool " + c.g.path(p), Result: driver.OK,
				Detail: fmt.Sprintf("%.1f%% used; at %d%% no snapshot is made", max(x.used, 0), full),
				Limit:  &driver.Limit{Unit: "per cent", Used: int64(max(x.used, 0)), Most: full},
			}
			switch {
			case x.used < 0:
				f.Result, f.Detail, f.Limit = driver.Unchecked, "lvm2 does not tell how full it is", nil
			case x.used >= full:
				f.Result, f.Try = driver.Failed, x.try
			case x.used >= full-10:
				f.Result, f.Try = driver.Warning, x.try
			}
			c.found = append(c.found, f)
		}
	}
}

// vg is a volume group as vgs(8) reports it.
type vg struct {
	Size       string `json:"vg_size"`
	Permission string `json:"vg_permissions"` // "writeable"
	Exported   string `json:"vg_exported"`    // "exported" or empty
	Partial    string `json:"vg_partial"`     // "partial" or empty
	LockType   string `json:"vg_lock_type"`
	size       int64
}

func (d *Driver) whole(ctx context.Context) (vg, error) {
	out, err := d.lvm(ctx, "vgs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", "vg_size,vg_permissions,vg_exported,vg_partial,vg_lock_type", d.o.Group)
	if err != nil {
		return vg{}, asked(err)
	}
	var r struct {
		Report []struct {
			VG []vg `json:"vg"`
		} `json:"report"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return vg{}, fmt.Errorf("report of vgs: %w", err)
	}
	if len(r.Report) != 1 || len(r.Report[0].VG) != 1 {
		return vg{}, fmt.Errorf("report of vgs: want one volume group %s", d.o.Group)
	}
	w := r.Report[0].VG[0]
	w.size, err = size(w.Size)
	return w, err
}

// findings tell what keeps a group from being changed.
func (w vg) findings(g *group) []driver.Finding {
	f := driver.Finding{Area: driver.AreaReach, Check: "volume group " + g.name, Result: driver.OK, Detail: "found"}
	switch {
	case w.Exported != "":
		f.Result, f.Detail, f.Try = driver.Failed, "it is exported", "`vgimport "+g.name+"`"
	case w.Partial != "":
		f.Result, f.Detail, f.Try = driver.Failed, "physical volumes of it are missing, and lvm2 changes nothing in such a group", "`pvs` shows them; bring them back, or `vgreduce --removemissing "+g.name+"`"
	case w.Permission == "read-only":
		f.Result, f.Area, f.Detail, f.Try = driver.Failed, driver.AreaPermission, "it is read-only", "`vgchange -prw "+g.name+"`"
	case g.shared:
		f.Result, f.Detail = driver.Warning, "found; it is shared ("+w.LockType+"), where volumes have to be active exclusively on this host"
		f.Try = "`lvchange -aey` for each of them"
	}
	fs := []driver.Finding{f}
	if !slices.ContainsFunc(g.lvs, func(v *lv) bool { return g.isVolume(v) && v.active }) {
		fs = append(fs, driver.Finding{Area: driver.AreaHealth, Check: "volumes of " + g.name, Result: driver.Warning, Detail: "none is active on this host", Try: "`vgchange -ay " + g.name + "`"})
	}
	return fs
}

var _ driver.Checker = (*Driver)(nil)
