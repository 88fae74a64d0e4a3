package embedded

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"syscall"

	"github.com/cleave-san/cleave/arrays/driver"
)

// poolReserve is how much room a pool must have for a mirror to be made in it,
// in bytes.
const poolReserve = 64 << 10

// lowPercent is PoolLimit's default.
const lowPercent = 10

// Pools describes the pools, by name.
func (a *Array) Pools() []PoolInfo {
	out := make([]PoolInfo, 0, len(a.pools))
	for _, p := range a.pools {
		out = append(out, a.poolInfo(p))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (a *Array) poolInfo(p *pool) PoolInfo {
	info := PoolInfo{Name: p.name, Dir: p.dir, Limit: p.limit.Limit, Health: HealthOK}
	if err := p.down(); err != nil {
		info.Health, info.Reason = HealthOffline, err.Error()
		return info
	}
	info.Used, info.Provisioned = a.usage(p)
	info.Reflink = p.canClone(a.fs) == nil
	var err error
	if info.Size, info.Free, err = a.room(p, info.Used); err != nil {
		info.Health, info.Reason = HealthOffline, err.Error()
		return info
	}
	switch ro := p.readOnly.Load(); {
	case ro != nil:
		info.Health, info.Reason = HealthReadOnly, (*ro).Error()
	case info.Free < poolReserve:
		info.Health, info.Reason = HealthFull, fmt.Sprintf("pool %q is full", p.name)
	case info.Free < p.limit.threshold(info.Size):
		info.Health = HealthLow
	}
	return info
}

// room is what there is in a pool for us, of which used is taken.
func (a *Array) room(p *pool, used int64) (size, free int64, err error) {
	if size, free, err = a.fs.Space(p.dir); err != nil {
		return 0, 0, fmt.Errorf("pool %q: %w", p.name, err)
	}
	if l := p.limit.Limit; l > 0 {
		size, free = min(size, l), max(min(free, l-used), 0)
	}
	return size, free, nil
}

// threshold is how much must be free of size for room not to be low.
func (l *PoolLimit) threshold(size int64) int64 {
	percent := l.LowPercent
	if percent == 0 && l.LowBytes == 0 {
		percent = lowPercent
	}
	return max(l.LowBytes, size/100*int64(percent))
}

// usage is what raw files in a pool take, and would take.
func (a *Array) usage(p *pool) (used, provisioned int64) {
	add := func(m *mirrorRecord, size int64) {
		if m.Pool == p.name {
			used += a.allocated(m)
			provisioned += size
		}
	}
	c := a.store.read()
	for i := range c.Volumes {
		v := &c.Volumes[i]
		for j := range v.Mirrors {
			add(&v.Mirrors[j], v.Size)
		}
	}
	for i := range c.Snapshots {
		add(&c.Snapshots[i].Mirror, c.Snapshots[i].Size)
	}
	return used, provisioned
}

// allocated is what a raw file takes on its disk; 0 where that can't be told.
func (a *Array) allocated(m *mirrorRecord) int64 {
	fi, err := a.fs.Stat(a.poolPath(m.Pool, m.File))
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512 // stat(2)
	}
	return 0
}

func (a *Array) checkPool(name string) error {
	p := a.pools[name]
	if p == nil {
		return driver.Errorf(driver.NotFound, "no pool %.80q: there are %s", name, strings.Join(slices.Sorted(maps.Keys(a.pools)), ", "))
	}
	if err := p.down(); err != nil {
		return driver.Errorf(driver.Unreachable, "%w", err)
	}
	if ro := p.readOnly.Load(); ro != nil {
		return driver.Errorf(driver.NotPermitted, "%w", *ro)
	}
	return nil
}

// checkRoom is checkPool for a pool that is to hold need more bytes at once. A
// new mirror takes little, being sparse; but one in a full pool is lost at the
// first write.
func (a *Array) checkRoom(name string, need int64) error {
	if err := a.checkPool(name); err != nil {
		return err
	}
	p := a.pools[name]
	var used int64
	if p.limit.Limit > 0 {
		used, _ = a.usage(p)
	}
	_, free, err := a.room(p, used)
	switch {
	case err != nil:
		return err
	case free < need+poolReserve && p.limit.Limit > 0:
		return driver.Errorf(driver.NoSpace, "pool %q is full: %d bytes are free of the %d that it is limited to in %s, and %d are needed", name, free, p.limit.Limit, p.dir, need+poolReserve)
	case free < need+poolReserve:
		return driver.Errorf(driver.NoSpace, "pool %q is full: %d bytes are free in %s, and %d are needed", name, free, p.dir, need+poolReserve)
	}
	return nil
}
