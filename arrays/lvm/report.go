package lvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// fields are what is asked of every logical volume, internal ones included.
const fields = "vg_name,vg_uuid,vg_free,vg_lock_type,lv_uuid,lv_name,lv_parent,lv_size,lv_layout,lv_role,lv_tags," +
	"origin,origin_uuid,pool_lv_uuid,data_percent,metadata_percent,sync_percent,raid_sync_action,lv_image_synced,lv_health_status," +
	"lv_kernel_major,lv_kernel_minor,lv_active,lv_active_exclusively,lv_permissions,lv_suspended,lv_device_open,lv_snapshot_invalid"

// reported is a logical volume as lvs(8) reports it: every value is a string, a
// binary one "0", "1" or "-1" for one that is not known.
type reported struct {
	VGName     string `json:"vg_name"`
	VGUUID     string `json:"vg_uuid"`
	VGFree     string `json:"vg_free"`
	LockType   string `json:"vg_lock_type"`
	UUID       string `json:"lv_uuid"`
	Name       string `json:"lv_name"` // in brackets: internal
	Parent     string `json:"lv_parent"`
	Size       string `json:"lv_size"`
	Layout     string `json:"lv_layout"`
	Role       string `json:"lv_role"`
	Tags       string `json:"lv_tags"`
	Origin     string `json:"origin"`
	OriginUUID string `json:"origin_uuid"`
	PoolUUID   string `json:"pool_lv_uuid"`
	Data       string `json:"data_percent"`
	Metadata   string `json:"metadata_percent"`
	Sync       string `json:"sync_percent"`
	Action     string `json:"raid_sync_action"`
	Synced     string `json:"lv_image_synced"`
	Health     string `json:"lv_health_status"`
	Major      string `json:"lv_kernel_major"`
	Minor      string `json:"lv_kernel_minor"`
	Active     string `json:"lv_active"`
	Exclusive  string `json:"lv_active_exclusively"`
	Permission string `json:"lv_permissions"`
	Suspended  string `json:"lv_suspended"`
	Open       string `json:"lv_device_open"`
	Invalid    string `json:"lv_snapshot_invalid"`
}

// lv is a logical volume.
type lv struct {
	uuid, name   string
	parent       string // the name of the one that it is a part of
	internal     bool   // not to be seen, and part of another
	size         int64
	layout, role []string
	tags         []string
	origin       string // the UUID of the one that it is a snapshot of
	originName   string
	pool         string  // the UUID of its thin pool
	data, meta   float64 // per cent in use, of a pool or a thick snapshot; -1: none
	sync         float64 // per cent, of a raid; -1: none
	action       string
	synced       bool // an image of a raid that is in sync
	health       string
	major, minor int64
	active       bool // on this host, with a device
	exclusive    bool
	suspended    bool
	open         bool
	invalid      bool // a thick snapshot that overflowed
}

// group is a volume group, as of one report.
type group struct {
	name, uuid string
	free       int64
	shared     bool // other hosts have it too, under lvmlockd
	lvs        []*lv
}

// maxVolumes bounds a report.
const maxVolumes = 100_000

var (
	// LVM's UUIDs: 32 characters in groups of 6, 4, 4, 4, 4, 4 and 6.
	uuidForm = regexp.MustCompile(`^[0-9A-Za-z]{6}(-[0-9A-Za-z]{4}){5}-[0-9A-Za-z]{6}$`)
	// Names as lvm(8) allows them, at most 127 bytes.
	nameForm = regexp.MustCompile(`^[0-9A-Za-z+_.][0-9A-Za-z+_.-]{0,126}$`)
)

// parse reads the report of a volume group.
func parse(name string, b []byte) (*group, error) {
	var r struct {
		Report []struct {
			LV []reported `json:"lv"`
		} `json:"report"`
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("report of lvs: %w", err)
	}
	if len(r.Report) != 1 {
		return nil, fmt.Errorf("report of lvs: %d of them, want one", len(r.Report))
	}
	g := &group{name: name}
	seen := map[string]bool{}
	if len(r.Report[0].LV) > maxVolumes {
		return nil, fmt.Errorf("report of lvs: %d volumes, at most %d are read", len(r.Report[0].LV), maxVolumes)
	}
	for i, x := range r.Report[0].LV {
		v, err := x.volume()
		switch {
		case err != nil:
			return nil, fmt.Errorf("report of lvs: volume %d (%.40q): %w", i+1, x.Name, err)
		case x.VGName != name:
			return nil, fmt.Errorf("report of lvs: volume %s is of group %.40q, want %s", v.name, x.VGName, name)
		case g.uuid != "" && x.VGUUID != g.uuid:
			return nil, fmt.Errorf("two volume groups are named %s (%s and %.40q): none of them is touched", name, g.uuid, x.VGUUID)
		case seen[v.uuid] || seen[v.name]:
			return nil, fmt.Errorf("report of lvs: %s (%s) is there twice", v.name, v.uuid)
		}
		seen[v.uuid], seen[v.name] = true, true
		g.uuid = x.VGUUID
		g.shared = x.LockType != "" && x.LockType != "none"
		if g.free, err = size(x.VGFree); err != nil {
			return nil, fmt.Errorf("report of lvs: vg_free: %w", err)
		}
		g.lvs = append(g.lvs, v)
	}
	return g, nil
}

// volume checks what a report says of one.
func (x reported) volume() (*lv, error) {
	v := &lv{
		uuid: x.UUID, parent: strings.Trim(x.Parent, "[]"), layout: list(x.Layout), role: list(x.Role), tags: list(x.Tags),
		origin: x.OriginUUID, originName: strings.Trim(x.Origin, "[]"), pool: x.PoolUUID, action: x.Action, synced: x.Synced == "1", health: x.Health,
		active: x.Active == "active", exclusive: x.Exclusive == "1", suspended: x.Suspended == "1", open: x.Open == "1", invalid: x.Invalid == "1",
	}
	v.name, v.internal = strings.CutPrefix(x.Name, "[")
	if v.internal {
		v.name = strings.TrimSuffix(v.name, "]")
	}
	for _, u := range []string{x.UUID, x.VGUUID} {
		if !uuidForm.MatchString(u) {
			return nil, fmt.Errorf("%.60q is no UUID", u)
		}
	}
	for _, n := range []string{v.name, x.VGName} {
		if !nameForm.MatchString(n) {
			return nil, fmt.Errorf("%.60q is no name", n)
		}
	}
	var errs [6]error
	v.size, errs[0] = size(x.Size)
	v.data, errs[1] = percent(x.Data)
	v.meta, errs[2] = percent(x.Metadata)
	v.sync, errs[3] = percent(x.Sync)
	v.major, errs[4] = number(x.Major)
	v.minor, errs[5] = number(x.Minor)
	return v, errors.Join(errs[:]...)
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func size(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%.40q is no size in bytes", s)
	}
	return n, nil
}

// number is a device's major or minor number; -1 is that of none.
func number(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < -1 {
		return 0, fmt.Errorf("%.40q is no device number", s)
	}
	return n, nil
}

func percent(s string) (float64, error) {
	if s == "" {
		return -1, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > 100 {
		return 0, fmt.Errorf("%.40q is no percentage", s)
	}
	return f, nil
}

func (v *lv) is(layout string) bool  { return slices.Contains(v.layout, layout) }
func (v *lv) plays(role string) bool { return slices.Contains(v.role, role) }
func (v *lv) tagged(tag string) bool { return slices.Contains(v.tags, tag) }
func (g *group) path(v *lv) string   { return g.name + "/" + v.name }

// value is that of a tag "key=value", or "".
func (v *lv) value(key string) string {
	for _, t := range v.tags {
		if s, ok := strings.CutPrefix(t, key+"="); ok {
			return s
		}
	}
	return ""
}

func (g *group) byUUID(uuid string) *lv {
	i := slices.IndexFunc(g.lvs, func(v *lv) bool { return v.uuid == uuid })
	if i < 0 {
		return nil
	}
	return g.lvs[i]
}

func (g *group) byName(name string) *lv {
	i := slices.IndexFunc(g.lvs, func(v *lv) bool { return v.name == name })
	if i < 0 {
		return nil
	}
	return g.lvs[i]
}

// images are the legs of a raid1 volume that it writes to.
func (g *group) images(v *lv) (out []*lv) {
	for _, x := range g.lvs {
		if x.internal && x.parent == v.name && x.plays("image") {
			out = append(out, x)
		}
	}
	return out
}

// tracked is the image that is split off a raid1 volume while its changes are
// tracked, or nil: it is of the image's role and not internal. lvm2 allows one, and
// reserves the names that end in _rimage_ and a number.
func (g *group) tracked(v *lv) *lv {
	for _, x := range g.lvs {
		number, ok := strings.CutPrefix(x.name, v.name+"_rimage_")
		if _, err := strconv.ParseUint(number, 10, 16); ok && err == nil && !x.internal && x.plays("image") {
			return x
		}
	}
	return nil
}

// inSync reports whether a raid1 volume has nothing to copy.
func (g *group) inSync(v *lv) bool {
	return v.sync == 100 && (v.action == "idle" || v.action == "") && v.health == "" &&
		!slices.ContainsFunc(g.images(v), func(x *lv) bool { return !x.synced })
}
