package cinder

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// consistentPools are the pools whose group snapshots are one instant, by name.
func (d *Driver) consistentPools(ctx context.Context) (map[string]bool, error) {
	all, err := get[[]pool](ctx, d.c, "scheduler-stats/get_pools?detail=True", "pools") // has no pages
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, p := range all {
		if p.Capabilities.Consistent {
			out[p.Name] = true
		}
	}
	return out, nil
}

// SplitGroup implements driver.GroupSplitter.
func (d *Driver) SplitGroup(ctx context.Context, tag driver.Tag, ids []driver.VolumeID) ([]driver.Snapshot, error) {
	if len(ids) == 1 {
		s, err := d.Split(ctx, tag, ids[0])
		return []driver.Snapshot{s}, err
	}
	ctx, cancel := d.limited(ctx)
	defer cancel()
	ctx, unlock, err := d.locks.lock(ctx, string(tag))
	if err != nil {
		return nil, err
	}
	defer unlock()
	gs, err := d.groupSnapshot(ctx, tag)
	if err != nil {
		return nil, err
	}
	if gs == nil {
		if gs, err = d.createGroupSnapshot(ctx, tag, ids); err != nil {
			return nil, err
		}
	}
	return d.settledGroup(ctx, tag, gs.ID, ids)
}

// groupSnapshot finds that of a tag, or nil.
func (d *Driver) groupSnapshot(ctx context.Context, tag driver.Tag) (*groupSnapshot, error) {
	all, err := list(ctx, d.c, "group_snapshots/detail", "group_snapshots", url.Values{"name": {name(tag)}}, func(g groupSnapshot) string { return g.ID })
	if i := slices.IndexFunc(all, func(g groupSnapshot) bool { return g.Name == name(tag) }); err == nil && i >= 0 {
		return &all[i], nil
	}
	return nil, err
}

func (d *Driver) createGroupSnapshot(ctx context.Context, tag driver.Tag, ids []driver.VolumeID) (*groupSnapshot, error) {
	var vs []volume
	for _, id := range ids {
		v, err := d.volume(ctx, string(id))
		if err != nil {
			return nil, err
		}
		if !v.ready() {
			return nil, driver.Errorf(driver.Busy, "volume %s is %q", id, v.Status)
		}
		vs = append(vs, v)
	}
	if some, err := d.tagged(ctx, tag); err != nil {
		return nil, err
	} else if len(some) > 0 {
		return nil, driver.Errorf(driver.InvalidRequest, "tag %q has %d snapshots already, of volumes one by one", tag, len(some))
	}
	if err := d.consistent(ctx, vs); err != nil {
		return nil, err
	}
	g, err := d.gather(ctx, tag, vs)
	if err != nil {
		return nil, err
	}
	in := map[string]any{"group_snapshot": map[string]any{"group_id": g, "name": name(tag), "description": "Cleave"}}
	gs, err := send[groupSnapshot](ctx, d.c, create, "group_snapshots", "group_snapshot", in)
	if isKind(err, driver.OutcomeUnknown) {
		if found, lost := d.groupSnapshot(ctx, tag); lost == nil && found != nil {
			return found, nil
		}
	}
	return &gs, err
}

// consistent refuses volumes whose pools make no group snapshot at one instant.
func (d *Driver) consistent(ctx context.Context, vs []volume) error {
	pools, err := d.consistentPools(ctx)
	if isKind(err, driver.NotPermitted) {
		return driver.Errorf(driver.NotSupported, "whether Cinder's pools make group snapshots at one instant may not be read (policy scheduler_extension:scheduler_stats:get_pools), so no group counts as consistent")
	} else if err != nil {
		return err
	}
	for _, v := range vs {
		switch {
		case v.Pool == "":
			return driver.Errorf(driver.NotSupported, "the pool of volume %s may not be read (policy volume_extension:volume_host_attribute), so its group doesn't count as consistent", v.ID)
		case !pools[v.Pool]:
			return driver.Errorf(driver.NotSupported, "pool %q of volume %s doesn't report consistent_group_snapshot_enabled: Cinder would take its snapshots one after the other", v.Pool, v.ID)
		}
	}
	return nil
}

// gather returns the group that is these volumes. Where they are in none, one is
// made of them; what an earlier attempt left behind is taken apart.
func (d *Driver) gather(ctx context.Context, tag driver.Tag, vs []volume) (id string, err error) {
	for i, v := range vs {
		if v.Group == "" {
			continue
		}
		g, err := d.group(ctx, v.Group)
		if err != nil {
			return "", err
		}
		if sameVolumes(g.Volumes, vs) {
			return g.ID, d.groupReady(ctx, g.ID)
		}
		if !strings.HasPrefix(g.Name, prefix) {
			return "", driver.Errorf(driver.NotSupported, "volume %s is in group %q with other volumes, and Cinder splits whole groups", v.ID, g.Name)
		}
		if err := d.dissolve(ctx, g.ID); err != nil {
			return "", err
		}
		if vs[i], err = d.volume(ctx, v.ID); err != nil {
			return "", err
		}
	}
	if d.o.GroupType == "" {
		return "", driver.Errorf(driver.NotSupported, "the volumes are in no group, and no group type is configured to make one with")
	}
	return d.makeGroup(ctx, tag, vs)
}

func sameVolumes(ids []string, vs []volume) bool {
	return len(ids) == len(vs) && !slices.ContainsFunc(vs, func(v volume) bool { return !slices.Contains(ids, v.ID) })
}

func (d *Driver) group(ctx context.Context, id string) (group, error) {
	return get[group](ctx, d.c, "groups/"+url.PathEscape(id)+"?list_volume=True", "group")
}

// named is an object that is referred to by its name in a configuration.
type named struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// makeGroup makes a group of the volumes, or goes on with one that was begun.
func (d *Driver) makeGroup(ctx context.Context, tag driver.Tag, vs []volume) (string, error) {
	find := func() (*group, error) {
		all, err := list(ctx, d.c, "groups/detail", "groups", url.Values{"name": {name(tag)}}, func(g group) string { return g.ID })
		if i := slices.IndexFunc(all, func(g group) bool { return g.Name == name(tag) }); err == nil && i >= 0 {
			return &all[i], nil
		}
		return nil, err
	}
	g, err := find()
	if err != nil {
		return "", err
	}
	if g == nil {
		in, err := d.newGroup(ctx, tag, vs)
		if err != nil {
			return "", err
		}
		made, err := send[group](ctx, d.c, create, "groups", "group", map[string]any{"group": in})
		if g = &made; isKind(err, driver.OutcomeUnknown) {
			if found, lost := find(); lost == nil && found != nil {
				g, err = found, nil
			}
		}
		if err != nil {
			return "", err
		}
	}
	if err := d.groupReady(ctx, g.ID); err != nil {
		return "", err
	}
	full, err := d.group(ctx, g.ID)
	if err != nil {
		return "", err
	}
	var missing []string
	for _, v := range vs {
		if !slices.Contains(full.Volumes, v.ID) {
			missing = append(missing, v.ID)
		}
	}
	if len(missing) > 0 {
		err := d.c.call(ctx, change, "groups/"+g.ID, nil, map[string]any{"group": map[string]any{"add_volumes": strings.Join(missing, ",")}}, nil)
		if err == nil {
			err = d.groupReady(ctx, g.ID)
		}
		if err != nil {
			return "", err
		}
		if full, err = d.group(ctx, g.ID); err != nil {
			return "", err
		}
	}
	if !sameVolumes(full.Volumes, vs) {
		return "", driver.Errorf(driver.Busy, "group %q has %d volumes and not the %d that are to be split", full.Name, len(full.Volumes), len(vs))
	}
	return g.ID, nil
}

// newGroup is the request for one: with the IDs of its type and the volumes'.
func (d *Driver) newGroup(ctx context.Context, tag driver.Tag, vs []volume) (map[string]any, error) {
	ofName := func(path, key, want string) (string, error) {
		all, err := list(ctx, d.c, path, key, nil, func(n named) string { return n.ID })
		if err != nil {
			return "", err
		}
		for _, n := range all {
			if n.ID == want || n.Name == want {
				return n.ID, nil
			}
		}
		return "", driver.Errorf(driver.NotFound, "Cinder has no %.80q among its %s", want, strings.ReplaceAll(key, "_", " "))
	}
	groupType, err := ofName("group_types", "group_types", d.o.GroupType)
	if err != nil {
		return nil, err
	}
	var types []string
	for _, v := range vs {
		t, err := ofName("types", "volume_types", v.Type)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(types, t) {
			types = append(types, t)
		}
	}
	return map[string]any{"name": name(tag), "description": "Cleave", "group_type": groupType, "volume_types": types}, nil
}

// groupReady waits until a group is available.
func (d *Driver) groupReady(ctx context.Context, id string) error {
	return d.c.until(ctx, func() (bool, error) {
		g, err := d.group(ctx, id)
		if err == nil && strings.HasPrefix(g.Status, "error") {
			err = driver.Errorf(driver.NotSupported, "group %q: Cinder's scheduler or back end made no group of these volumes; its log says why", g.Name)
		}
		return g.Status == "available", err
	})
}

// settledGroup waits until a group snapshot is whole, and returns its members in
// the order of ids.
func (d *Driver) settledGroup(ctx context.Context, tag driver.Tag, id string, ids []driver.VolumeID) ([]driver.Snapshot, error) {
	var gs groupSnapshot
	err := d.c.until(ctx, func() (bool, error) {
		var err error
		gs, err = get[groupSnapshot](ctx, d.c, "group_snapshots/"+id, "group_snapshot")
		return gs.Status != "creating", err
	})
	switch {
	case isKind(err, driver.NotFound):
		return nil, driver.Errorf(driver.OutcomeUnknown, "group snapshot %s was there and is gone", id)
	case ctx.Err() != nil:
		return nil, driver.Errorf(driver.OutcomeUnknown, "group snapshot %s: Cinder was still at it when the time was over: %w", id, context.Cause(ctx))
	case err != nil:
		return nil, err
	case gs.Status != "available":
		err := driver.Errorf(driver.Unknown, "group snapshot %s is %q: Cinder's back end has failed, its log says why; it is being deleted", id, gs.Status)
		_ = d.c.call(ctx, end, "group_snapshots/"+id, nil, nil, nil)
		return nil, err
	}
	all, err := d.tagged(ctx, tag)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s snapshot) bool { return s.GroupSnapshot != id })
	out := make([]driver.Snapshot, len(ids))
	for i, v := range ids {
		j := slices.IndexFunc(all, func(s snapshot) bool { return s.Volume == string(v) })
		if j < 0 || len(all) != len(ids) {
			return nil, driver.Errorf(driver.InvalidRequest, "tag %q is a group of %d other volumes, or given back in part", tag, len(all))
		}
		out[i] = all[j].driver()
	}
	return out, nil
}

// deleteMember gives a member of a group snapshot back: Cinder deletes all of
// them at once, so each but the last is marked only.
func (d *Driver) deleteMember(ctx context.Context, s snapshot) error {
	ctx, unlock, err := d.locks.lock(ctx, s.GroupSnapshot) // so that two can't both find another one left
	if err != nil {
		return err
	}
	defer unlock()
	if s.Metadata[endedKey] == "" {
		in := map[string]any{"metadata": map[string]string{endedKey: "1"}}
		if err := d.c.call(ctx, act, "snapshots/"+s.ID+"/metadata", nil, in, nil); err != nil {
			return err
		}
	}
	all, err := list(ctx, d.c, "snapshots/detail", "snapshots", url.Values{"name": {s.Name}}, func(s snapshot) string { return s.ID })
	if err != nil {
		return err
	}
	for _, x := range all {
		if x.GroupSnapshot == s.GroupSnapshot && x.ID != s.ID && x.Metadata[endedKey] == "" {
			return nil
		}
	}
	gs, err := get[groupSnapshot](ctx, d.c, "group_snapshots/"+s.GroupSnapshot, "group_snapshot")
	if isKind(err, driver.NotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if err := d.remove(ctx, "group_snapshots/"+gs.ID, "group_snapshot"); err != nil {
		return err
	}
	g, err := d.group(ctx, gs.Group)
	if isKind(err, driver.NotFound) || err == nil && !strings.HasPrefix(g.Name, prefix) {
		return nil
	} else if err != nil {
		return err
	}
	if err := d.dissolve(ctx, g.ID); err != nil && !isKind(err, driver.Busy) {
		return err
	}
	return nil
}

// dissolve lets a group's volumes go and deletes it; volumes stay as they are. It
// is refused with kind Busy where the group has snapshots.
func (d *Driver) dissolve(ctx context.Context, id string) error {
	all, err := list(ctx, d.c, "group_snapshots/detail", "group_snapshots", url.Values{"group_id": {id}}, func(g groupSnapshot) string { return g.ID })
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(gs groupSnapshot) bool { return gs.Group == id }) {
		return driver.Errorf(driver.Busy, "group %s is another set's, whose snapshots are still there", id)
	}
	g, err := d.group(ctx, id)
	if isKind(err, driver.NotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if len(g.Volumes) > 0 {
		in := map[string]any{"group": map[string]any{"remove_volumes": strings.Join(g.Volumes, ",")}}
		if err := d.c.call(ctx, change, "groups/"+id, nil, in, nil); err != nil {
			return err
		}
		if err := d.groupReady(ctx, id); err != nil {
			return err
		}
		if g, err = d.group(ctx, id); err != nil {
			return err
		}
		if len(g.Volumes) > 0 {
			return driver.Errorf(driver.Busy, "group %s keeps %d volumes", id, len(g.Volumes))
		}
	}
	in := map[string]any{"delete": map[string]any{"delete-volumes": false}}
	if err := d.c.call(ctx, act, "groups/"+id+"/action", nil, in, nil); err != nil && !isKind(err, driver.NotFound) && !isKind(err, driver.InvalidRequest) {
		return err
	}
	return d.c.until(ctx, func() (bool, error) {
		_, err := d.group(ctx, id)
		if isKind(err, driver.NotFound) {
			return true, nil
		}
		return false, err
	})
}
