package cinder

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// quota is one of the project's, as os-quota-sets has it.
type quota struct {
	Limit    int64 `json:"limit"` // -1: none
	InUse    int64 `json:"in_use"`
	Reserved int64 `json:"reserved"`
}

// needs is what the next set takes of a quota, by the quota's name: of each volume a
// snapshot, and a volume made of that. Cinder counts gigabytes of snapshots unless
// no_snapshot_gb_quota is set, which is not told.
func (e *examination) needs() map[string]int64 {
	n := map[string]int64{}
	for _, v := range e.next {
		for _, of := range []string{"", "_" + v.Type} {
			if of == "_" {
				continue
			}
			n["snapshots"+of]++
			n["volumes"+of]++
			n["gigabytes"+of] += 2 * v.Size
		}
	}
	if len(e.next) > 1 && slices.ContainsFunc(e.next, func(v volume) bool { return v.Group == "" }) {
		n["groups"]++
	}
	return n
}

// quotas tells what is left of the project's quotas for the next set. A quota of
// a volume type counts where there is one and the set has such a volume.
func (e *examination) quotas() {
	if len(e.next) == 0 {
		e.add(driver.AreaLimit, "quota", driver.Unchecked, "", "there is no volume whose snapshot could be counted")
		return
	}
	all, err := e.readQuotas()
	if err != nil {
		e.refusal("read quotas", "volume_extension:quotas:show", err, driver.Warning, "what the next set would not fit is not known")
		return
	}
	needs := e.needs()
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		q, ok := all[name]
		if !ok || strings.Contains(name, "_") && q.Limit < 0 {
			continue
		}
		unit, _, _ := strings.Cut(name, "_")
		l := driver.Limit{Unit: unit, Used: q.InUse + q.Reserved, Most: max(q.Limit, -1), Next: needs[name]}
		e.found = append(e.found, driver.Room("quota "+name, l, "delete snapshot sets, or ask the cloud for more ("+name+")"))
	}
	if q, ok := all["per_volume_gigabytes"]; ok && q.Limit >= 0 {
		for _, v := range e.next {
			if v.Size > q.Limit {
				e.add(driver.AreaLimit, "quota per_volume_gigabytes", driver.Failed, "ask the cloud for more (per_volume_gigabytes)",
					"a volume may have %d GiB, and what is made of a snapshot of %s needs %d", q.Limit, v.ID, v.Size)
			}
		}
	}
}

// readQuotas asks for all quotas, and where that is refused for the limits, which
// have those of no type.
func (e *examination) readQuotas() (map[string]quota, error) {
	all := map[string]quota{}
	if p := e.project(); p != "" {
		set, err := get[map[string]json.RawMessage](e.ctx, e.c, "os-quota-sets/"+p+"?usage=True", "quota_set")
		if err == nil {
			for name, b := range set {
				var q quota
				if json.Unmarshal(b, &q) == nil {
					all[name] = q
				}
			}
			return all, nil
		} else if !isKind(err, driver.NotPermitted) && !isKind(err, driver.NotFound) {
			return nil, err
		}
	}
	l, err := send[struct {
		Absolute map[string]int64 `json:"absolute"`
	}](e.ctx, e.c, ask, "limits", "limits", nil)
	if err != nil {
		return nil, err
	}
	for name, of := range map[string][2]string{
		"snapshots": {"maxTotalSnapshots", "totalSnapshotsUsed"},
		"volumes":   {"maxTotalVolumes", "totalVolumesUsed"},
		"gigabytes": {"maxTotalVolumeGigabytes", "totalGigabytesUsed"},
	} {
		most, ok := l.Absolute[of[0]]
		used, told := l.Absolute[of[1]]
		if ok && told {
			all[name] = quota{Limit: most, InUse: used}
		}
	}
	if len(all) == 0 {
		return nil, driver.Errorf(driver.NotPermitted, "the limits are told without what is used")
	}
	return all, nil
}
