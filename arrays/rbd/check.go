package rbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// checkLimit bounds each command of a check: without monitors rbd waits.
const checkLimit = 20 * time.Second

// examination is what Check goes through.
type examination struct {
	*Driver
	ctx   context.Context
	found []driver.Finding
	next  []image
	named bool // next was
}

func (e *examination) add(a driver.Area, check string, r driver.Result, try, detail string, args ...any) {
	e.found = append(e.found, driver.Finding{Area: a, Check: check, Result: r, Try: try, Detail: fmt.Sprintf(detail, args...)})
}

// Check implements driver.Checker: whether the pools can be read and their images
// written to by the user's capabilities, what each image of the next set can do and
// how many snapshots it may still have, how full pools are, and by what snapshots
// are read on this host. Where no set is named, each pool's first image stands for
// it.
func (d *Driver) Check(ctx context.Context, next []driver.VolumeID) ([]driver.Finding, error) {
	e := &examination{Driver: d, ctx: ctx, named: len(next) > 0}
	for _, id := range next {
		i, err := parseImage(string(id))
		if err != nil {
			e.add(driver.AreaHealth, "image "+string(id), driver.Failed, "`cleave explain` says which VM's it is", "%v", err)
			continue
		}
		e.next = append(e.next, i)
	}
	e.host()
	if err := e.pools(); err != nil {
		return e.found, err
	}
	var pairs, groups int
	for _, i := range e.next {
		x, ok := e.image(i)
		if ok && slices.Contains(x.Features, "exclusive-lock") {
			pairs++
		}
		if ok && x.Group != "" && !strings.Contains(x.Group, "/"+prefix) {
			groups++
		}
	}
	if e.named && len(e.next) > 1 {
		e.together(pairs, groups)
	}
	e.room()
	return e.found, nil
}

// host tells by what images are read here, and what the other ways lack.
func (e *examination) host() {
	const check = "reading on this host"
	w, err := e.way()
	if err != nil {
		e.add(driver.AreaCapability, check, driver.Failed, "install what one of them lacks (docs/provider-rbd.md)", "%v", err)
		return
	}
	if err := w.lacks(e.Driver); err != nil { // which may be built in
		e.add(driver.AreaCapability, check, driver.Warning, "if reading fails, install it", "by %s; %v", w.name, err)
		return
	}
	detail := fmt.Sprintf("by %s", w.name)
	for _, other := range ways {
		if other.name == w.name {
			continue
		}
		if err := other.lacks(e.Driver); err != nil {
			detail += fmt.Sprintf("; not by %s: %v", other.name, err)
		} else {
			detail += fmt.Sprintf("; %s would do", other.name)
		}
	}
	e.add(driver.AreaCapability, check, driver.OK, "", "%s", detail)
}

// bound is ask within checkLimit.
func (e *examination) bound(out any, args ...string) error {
	ctx, cancel := context.WithTimeout(e.ctx, checkLimit)
	defer cancel()
	return e.ask(ctx, out, args...)
}

// pools lists the pools' images. Its error says that the cluster does not answer.
func (e *examination) pools() error {
	const caps = "`ceph auth caps` gives the user mon 'profile rbd' and osd 'profile rbd pool=…' (docs/provider-rbd.md)"
	for _, p := range e.Driver.pools {
		check := "read pool " + strings.TrimSuffix(p.String(), "/")
		var names []string
		err := e.bound(&names, append([]string{"ls"}, p.where()...)...)
		switch {
		case e.is(err, driver.NotPermitted):
			e.add(driver.AreaPermission, check, driver.Failed, caps, "%v", err)
			continue
		case e.is(err, driver.NotFound):
			e.add(driver.AreaReach, check, driver.Failed, "correct the array's pools in the configuration", "%v", err)
			continue
		case err != nil:
			return err
		}
		e.add(driver.AreaPermission, check, driver.OK, "", "allowed; it has %d images", len(names))
		var first []image
		for _, n := range names {
			if i := (image{p.pool, p.namespace, n}); !i.isView() && len(first) == 0 {
				first = append(first, i)
			}
		}
		if !e.named {
			e.next = append(e.next, first...)
		}
	}
	return nil
}

// image tells of one: that it is there, that it may be written to, what it can do,
// and how many snapshots it may have.
func (e *examination) image(i image) (info, bool) {
	ctx, cancel := context.WithTimeout(e.ctx, checkLimit)
	defer cancel()
	x, err := e.info(ctx, i)
	if err != nil {
		e.add(driver.AreaHealth, "image "+i.String(), driver.Failed, "`rbd info "+i.String()+"`", "%v", err)
		return x, false
	}
	lacks := slices.DeleteFunc([]string{"exclusive-lock", "object-map", "fast-diff"}, func(f string) bool { return slices.Contains(x.Features, f) })
	switch {
	case len(lacks) == 0:
		e.add(driver.AreaCapability, "image "+i.String(), driver.OK, "", "group snapshots, and changed regions without reading everything")
	case lacks[0] == "exclusive-lock":
		e.add(driver.AreaCapability, "image "+i.String(), driver.Warning, "`rbd feature enable "+i.String()+" exclusive-lock object-map fast-diff`", "without the feature exclusive-lock it is split alone only, and changed regions take long")
	default:
		e.add(driver.AreaCapability, "image "+i.String(), driver.OK, "`rbd feature enable "+i.String()+" object-map fast-diff`", "group snapshots; changed regions take long without %s", strings.Join(lacks, " and "))
	}
	// The key is not there: this needs all that a change of the header does, and changes nothing.
	_, err = e.run(ctx, false, append([]string{"image-meta", "remove", doctorKey}, i.args()...))
	switch {
	case err == nil || e.is(err, driver.NotFound):
		e.add(driver.AreaPermission, "write to image "+i.String(), driver.OK, "", "allowed")
	case e.is(err, driver.NotPermitted):
		e.add(driver.AreaPermission, "write to image "+i.String(), driver.Failed, "`ceph auth caps` gives the user osd 'profile rbd pool="+i.pool+"'", "%v", err)
	default:
		e.add(driver.AreaPermission, "write to image "+i.String(), driver.Unchecked, "", "%v", err)
	}
	l := driver.Limit{Unit: "snapshots", Used: x.Snapshots, Most: -1, Next: 1}
	if x.SnapshotLimit != nil {
		l.Most = *x.SnapshotLimit
	}
	e.found = append(e.found, driver.Room("snapshots of image "+i.String(), l, "delete sets, or `rbd snap limit set`"))
	return x, true
}

// doctorKey is of no image's metadata.
const doctorKey = "cleave.doctor"

// together tells whether the set's images can be split at one instant.
func (e *examination) together(locking, grouped int) {
	const check = "all of them at one instant"
	spaces := map[string]bool{}
	for _, i := range e.next {
		spaces[i.namespace] = true
	}
	switch {
	case len(spaces) > 1:
		e.add(driver.AreaCapability, check, driver.Warning, "", "not possible: they are in several namespaces (guests whose images are in one can be)")
	case locking < len(e.next):
		e.add(driver.AreaCapability, check, driver.Warning, "enable the feature exclusive-lock", "%d of %d images have no exclusive-lock (guests with one image are not concerned)", len(e.next)-locking, len(e.next))
	case grouped > 0:
		e.add(driver.AreaCapability, check, driver.Warning, "`rbd group ls` shows them", "%d of %d images are in groups of yours, which are split as a whole or not at all", grouped, len(e.next))
	default:
		e.add(driver.AreaCapability, check, driver.OK, "", "by a group snapshot of Ceph's")
	}
}

// room tells how full the pools are, by `ceph df`, which `profile rbd` allows.
func (e *examination) room() {
	const check = "room in the pools"
	var df struct {
		Pools []struct {
			Name  string `json:"name"`
			Stats struct {
				Stored     int64 `json:"stored"`
				Available  int64 `json:"max_avail"`
				QuotaBytes int64 `json:"quota_bytes"`
			} `json:"stats"`
		} `json:"pools"`
	}
	err := e.ceph(&df, "df", "detail")
	switch {
	case errors.Is(err, os.ErrNotExist):
		e.add(driver.AreaLimit, check, driver.Unchecked, "install Debian's ceph-common", "there is no %s on this host to ask by", e.o.Ceph)
		return
	case err != nil:
		e.add(driver.AreaLimit, check, driver.Unchecked, "", "%v", err)
		return
	}
	for _, p := range df.Pools {
		if !slices.ContainsFunc(e.Driver.pools, func(i image) bool { return i.pool == p.Name }) {
			continue
		}
		most := p.Stats.Stored + p.Stats.Available
		if q := p.Stats.QuotaBytes; q > 0 {
			most = min(most, q)
		}
		// A snapshot takes what is written after it, which nobody knows before.
		e.found = append(e.found, driver.Room("pool "+p.Name, driver.Limit{Unit: "bytes", Used: p.Stats.Stored, Most: most}, "free space, or add OSDs"))
		if most <= p.Stats.Stored {
			f := &e.found[len(e.found)-1]
			f.Result, f.Try = driver.Failed, "free space, raise the pool's quota, or add OSDs"
		}
	}
	var health struct {
		Status string `json:"status"`
		Checks map[string]struct {
			Summary struct {
				Message string `json:"message"`
			} `json:"summary"`
		} `json:"checks"`
	}
	if err := e.ceph(&health, "health"); err != nil {
		e.add(driver.AreaHealth, "cluster", driver.Unchecked, "", "%v", err)
		return
	}
	var why []string
	for name, c := range health.Checks {
		why = append(why, name+": "+c.Summary.Message)
	}
	slices.Sort(why)
	switch health.Status {
	case "HEALTH_OK":
		e.add(driver.AreaHealth, "cluster", driver.OK, "", "HEALTH_OK")
	default: // it may well do for a snapshot
		e.add(driver.AreaHealth, "cluster", driver.Warning, "`ceph health detail`", "%s: %s", health.Status, strings.Join(why, "; "))
	}
}

// ceph asks a monitor by the program of that name.
func (e *examination) ceph(out any, args ...string) error {
	ctx, cancel := context.WithTimeout(e.ctx, checkLimit)
	defer cancel()
	if _, err := os.Stat(e.o.Ceph); err != nil {
		return err
	}
	d := &Driver{o: e.o}
	d.o.Command = e.o.Ceph
	return d.ask(ctx, out, args...)
}

var _ driver.Checker = (*Driver)(nil)
