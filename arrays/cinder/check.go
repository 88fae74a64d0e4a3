package cinder

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"

	"github.com/cleave-san/cleave/arrays/driver"
)

// examination is what Check goes through, one finding after the other.
type examination struct {
	*Driver
	ctx   context.Context
	found []driver.Finding
	next  []volume // of the next set
	all   []volume // of the project, as far as they may be seen
	alone bool     // the set was not named: it is one volume
}

func (e *examination) add(a driver.Area, check string, r driver.Result, try, detail string, args ...any) {
	e.found = append(e.found, driver.Finding{Area: a, Check: check, Result: r, Try: try, Detail: fmt.Sprintf(detail, args...)})
}

// Check implements driver.Checker: who we are to Keystone, which calls the
// policy refuses, which volumes of the next set make a group, and what the quotas
// have left for a snapshot of each and a volume made of that. Where no set is
// named it is one of the largest volume that is in use.
func (d *Driver) Check(ctx context.Context, next []driver.VolumeID) ([]driver.Finding, error) {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	e := &examination{Driver: d, ctx: ctx}
	if err := e.who(); err != nil {
		return nil, err
	}
	e.reads()
	e.choose(next)
	e.writes()
	pools, known := e.pools()
	e.groups(pools, known)
	if d.o.Connect == nil {
		e.add(driver.AreaCapability, "reading on this host", driver.Warning, "set initiator in the configuration",
			"snapshots are exposed to initiators only, as this host has none")
	}
	e.quotas()
	if err := context.Cause(ctx); err != nil {
		return nil, driver.Errorf(driver.Unreachable, "Cinder had not answered all questions when the time was over: %w", err)
	}
	return e.found, nil
}

// who logs in, and tells as whom.
func (e *examination) who() error {
	sc, err := e.c.service(e.ctx)
	if err != nil {
		return err
	}
	t, ok := sc.GetAuthResult().(tokens.CreateResult)
	if !ok {
		e.add(driver.AreaPermission, "who it is", driver.OK, "", "no Keystone: Cinder asks for none, and everybody is an administrator unless something before it decides")
		return nil
	}
	roles, err := t.ExtractRoles()
	project, err2 := t.ExtractProject()
	if err != nil || err2 != nil || project == nil {
		e.add(driver.AreaPermission, "who it is", driver.Warning, "log in to a project", "Keystone gives a token, of no project")
		return nil
	}
	var names []string
	for _, r := range roles {
		names = append(names, r.Name)
	}
	e.add(driver.AreaPermission, "who it is", driver.OK, "", "Keystone gives a token for project %s with roles %s", project.ID, strings.Join(names, ", "))
	return nil
}

// project is the ID of the one that is logged in to, or "".
func (e *examination) project() string {
	if e.o.Project != "" {
		return e.o.Project
	}
	if sc, err := e.c.service(e.ctx); err == nil {
		if t, ok := sc.GetAuthResult().(tokens.CreateResult); ok {
			if p, err := t.ExtractProject(); err == nil && p != nil {
				return p.ID
			}
		}
	}
	return ""
}

// choose finds the volumes of the next set.
func (e *examination) choose(next []driver.VolumeID) {
	for _, v := range e.all {
		if slices.Contains(next, driver.VolumeID(v.ID)) {
			e.next = append(e.next, v)
		}
	}
	if len(next) > len(e.next) {
		e.add(driver.AreaHealth, "volumes", driver.Failed, "`cleave explain` says which VM's they are",
			"%d of the next set's %d volumes are not among the project's", len(next)-len(e.next), len(next))
	}
	for _, v := range e.next {
		if !v.ready() {
			e.add(driver.AreaHealth, "volume "+v.ID, driver.Failed, "`openstack volume show "+v.ID+"`", "it is %q", v.Status)
		}
	}
	if len(next) > 0 {
		return
	}
	e.alone = true
	better := func(a, b volume) bool { // a is the one to show a set by
		if use := a.Status == "in-use"; use != (b.Status == "in-use") {
			return use
		}
		return a.Size > b.Size
	}
	for _, v := range e.all {
		if v.Metadata[ofKey] == "" && v.ready() && (len(e.next) == 0 || better(v, e.next[0])) {
			e.next = []volume{v}
		}
	}
}

// pools are the back ends' pools, by name, if they may be read.
func (e *examination) pools() (map[string]pool, bool) {
	const check, rule = "read back ends' pools", "scheduler_extension:scheduler_stats:get_pools"
	all, err := get[[]pool](e.ctx, e.c, "scheduler-stats/get_pools?detail=True", "pools")
	if isKind(err, driver.NotPermitted) {
		// Whatever the policy says, Cinder's scheduler asks its database for the
		// services, which is for an administrator's context only.
		e.add(driver.AreaPermission, check, driver.Warning, "give the user role admin in the project, if guests have several volumes",
			"refused, as it is for all but administrators (policy %s and context_is_admin; only administrators pass both): no group counts as consistent, and room in the pools is not known", rule)
		return nil, false
	} else if err != nil {
		e.add(driver.AreaPermission, check, driver.Unchecked, "", "%v", err)
		return nil, false
	}
	e.add(driver.AreaPermission, check, driver.OK, "", "allowed")
	out := map[string]pool{}
	for _, p := range all {
		out[p.Name] = p
	}
	return out, true
}

// groups tells whether the volumes can be split at one instant, and what is free
// where they are.
func (e *examination) groups(pools map[string]pool, known bool) {
	const hosts = "read volumes' pools"
	hidden := slices.ContainsFunc(e.next, func(v volume) bool { return v.Pool == "" })
	if hidden {
		e.add(driver.AreaPermission, hosts, driver.Warning, "allow volume_extension:volume_host_attribute in Cinder's policy",
			"refused (policy volume_extension:volume_host_attribute): no group counts as consistent")
	} else if len(e.next) > 0 {
		e.add(driver.AreaPermission, hosts, driver.OK, "", "allowed")
	}
	need := map[string]int64{}
	var apart []string
	for _, v := range e.next {
		if v.Pool == "" {
			continue
		}
		need[v.Pool] += v.Size
		if known && !bool(pools[v.Pool].Capabilities.Consistent) && !slices.Contains(apart, v.Pool) {
			apart = append(apart, v.Pool)
		}
	}
	const check = "several volumes at one instant"
	switch {
	case !known || hidden:
		e.add(driver.AreaCapability, check, driver.Warning, "docs/provider-cinder.md says which role may", "not possible, as the pools may not be read")
	case len(apart) > 0:
		e.add(driver.AreaCapability, check, driver.Warning, "move volumes of one guest to such a pool", "not in %s: consistent_group_snapshot_enabled is not reported", strings.Join(apart, ", "))
	default:
		e.groupType(check)
	}
	for _, name := range slices.Sorted(maps.Keys(need)) {
		p, ok := pools[name]
		if !ok {
			continue
		}
		free, limited := p.Capabilities.Free.value()
		if !limited {
			e.add(driver.AreaLimit, "pool "+name, driver.Unchecked, "", "the back end tells no free capacity (%s)", p.Capabilities.Free)
			continue
		}
		total, _ := p.Capabilities.Total.value()
		l := driver.Limit{Unit: "bytes", Used: max(total-free, 0), Most: max(total, free), Next: need[name] * gib}
		f := driver.Room("pool "+name, l, "free space in the pool, or add to it")
		if f.Result == driver.Failed { // thin snapshots and clones may take less
			f.Result = driver.Warning
		}
		e.found = append(e.found, f)
	}
}

// groupType looks for the type of groups that volumes without one are put into.
func (e *examination) groupType(check string) {
	if e.o.GroupType == "" {
		r := driver.OK
		if slices.ContainsFunc(e.next, func(v volume) bool { return v.Group == "" }) && !e.alone && len(e.next) > 1 {
			r = driver.Warning
		}
		e.add(driver.AreaCapability, check, r, "set groupType in the configuration", "for volumes that are in a group of Cinder's already: no groupType is configured for others")
		return
	}
	types, err := list(e.ctx, e.c, "group_types", "group_types", nil, func(t groupType) string { return t.ID })
	switch {
	case err != nil:
		e.refusal("list group types", "group:access_group_types_specs", err, driver.Warning, "whether there is a "+e.o.GroupType+" is not known")
	case !slices.ContainsFunc(types, func(t groupType) bool { return t.Name == e.o.GroupType || t.ID == e.o.GroupType }):
		e.add(driver.AreaCapability, check, driver.Failed, "`cinder group-type-list` shows those that there are; correct groupType in the configuration",
			"there is no group type %q", e.o.GroupType)
	default:
		e.add(driver.AreaCapability, check, driver.OK, "", "by group snapshots, with group type %s for volumes that are in no group", e.o.GroupType)
	}
}

type groupType struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

var _ driver.Checker = (*Driver)(nil)
